// The memory that work is done in, and views of it and of the caller's rows.
#pragma once

#include <mutex>
#include <shared_mutex>

#include "engine/engine.h"

namespace fastsae {

// The caller's memory as a tensor, where no conversion is needed and no shadow is wanted.
inline bool usable_in_place(const Backend& backend, const RowSource& x, DType dtype) {
  return backend.reads(x) && !backend.wants_shadows() && x.dtype == dtype &&
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

inline RowSource source_of(const Tensor& x) {
  return {x.data, x.rows, x.cols, x.stride * static_cast<std::int64_t>(size_of(x.dtype)), x.dtype, true};
}

// Once this has gone the device has done its work, so that the rows of a caller may go.
struct Finish {
  Backend& backend;
  std::shared_mutex* mutex = nullptr;  // null: the caller has it
  ~Finish() {
    std::unique_lock<std::shared_mutex> lock;
    if (mutex != nullptr) lock = std::unique_lock(*mutex);
    backend.finish();
  }
};

struct Engine::Training {
  std::int64_t rows = 0;
  std::int64_t number = 0;  // of this scratch among all there were
  Arena arena;
  Tensor* x = nullptr;
  Tensor* target = nullptr;  // only with targets of their own
  Tensor* weight = nullptr;
  Tensor* numbers = nullptr;  // only where the model draws noise
  Batch batch() const {
    const Tensor none;
    return {*x, target == nullptr ? none : *target, *weight, numbers == nullptr ? none : *numbers};
  }
};

// For one call at a time.
struct Engine::Inference {
  std::int64_t rows = 0, cols = 0;
  Arena arena;
  Model::Work work;
  Tensor code, input, target, output;
};

}  // namespace fastsae
