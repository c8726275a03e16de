// A view of a row-major matrix: it owns nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"

namespace fastsae {

// Models compute in f32 or f64; bf16 and f16 rows may come in, i32 numbers columns, and bf16 and u8 keep moments.
enum class DType : std::uint8_t { f32, f64, bf16, f16, i32, u8 };

template <class S>
inline constexpr DType dtype_of = sizeof(S) == 4 ? DType::f32 : DType::f64;

constexpr std::size_t size_of(DType dtype) {
  return dtype == DType::f64                           ? 8
         : dtype == DType::bf16 || dtype == DType::f16 ? 2
         : dtype == DType::u8                          ? 1
                                                       : 4;
}

// The typed form that kernels hold.
template <class S>
struct View {
  S* data;
  std::int64_t stride;
  FS_HD S& operator()(std::int64_t row, std::int64_t col) const { return data[row * stride + col]; }
};

struct Tensor {
  void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;  // elements from one row to the next
  DType dtype = DType::f32;
  // The same elements as bf16, with the same stride, or null. Whatever writes the tensor writes both.
  void* shadow = nullptr;

  FS_HD bool exists() const { return data != nullptr; }
  std::int64_t size() const { return rows * cols; }
  std::size_t row_bytes() const { return static_cast<std::size_t>(cols) * size_of(dtype); }

  template <class S>
  FS_HD S* as() const {
    return static_cast<S*>(data);
  }
  template <class S>
  FS_HD View<S> view() const {
    return {static_cast<S*>(data), stride};
  }
  Tensor slice_rows(std::int64_t begin, std::int64_t count) const {
    Tensor part = *this;
    part.data = static_cast<std::byte*>(data) + begin * stride * static_cast<std::int64_t>(size_of(dtype));
    if (shadow != nullptr) part.shadow = static_cast<std::byte*>(shadow) + 2 * begin * stride;
    part.rows = count;
    return part;
  }
};

// The same memory as another matrix without gaps.
inline Tensor shaped(const Tensor& memory, std::int64_t rows, std::int64_t cols, DType dtype) {
  return {memory.data, rows, cols, cols, dtype, memory.shadow};
}
inline Tensor shaped(const Tensor& memory, std::int64_t rows, std::int64_t cols) {
  return shaped(memory, rows, cols, memory.dtype);
}

// Of a vector, or of none.
inline Tensor columns_of(const Tensor& row, std::int64_t first, std::int64_t count) {
  if (!row.exists()) return row;
  return shaped(shaped(row, row.cols, 1).slice_rows(first, count), 1, count);
}

}  // namespace fastsae
