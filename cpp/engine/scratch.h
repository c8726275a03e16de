// Views of scratch memory and of the caller's rows.
#pragma once

#include "backend/backend.h"

namespace fastsae {

inline Tensor shaped(const Tensor& memory, std::int64_t rows, std::int64_t cols, DType dtype) {
  return {memory.data, rows, cols, cols, dtype, memory.shadow};
}

inline Tensor shaped(const Tensor& memory, std::int64_t rows, std::int64_t cols) {
  return shaped(memory, rows, cols, memory.dtype);
}

// The caller's memory as a tensor, where no conversion is needed.
inline bool usable_in_place(const Backend& backend, const RowSource& x, DType dtype) {
  return backend.reads_host_memory() && x.dtype == dtype &&
         x.stride_bytes % static_cast<std::int64_t>(size_of(dtype)) == 0 &&
         x.stride_bytes >= x.cols * static_cast<std::int64_t>(size_of(dtype));
}

inline Tensor in_place(const RowSource& x, std::int64_t first, std::int64_t rows) {
  return {const_cast<std::byte*>(x.row(first)), rows, x.cols,
          x.stride_bytes / static_cast<std::int64_t>(size_of(x.dtype)), x.dtype};
}

inline RowSource rows_from(const RowSource& x, std::int64_t first, std::int64_t rows) {
  RowSource part = x;
  part.data = x.row(first);
  part.rows = rows;
  return part;
}

}  // namespace fastsae
