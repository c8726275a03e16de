// Rows of host memory into rows of a tensor's type.
#pragma once

#include "backend/backend.h"

namespace fastsae {

using ConvertRow = void (*)(const void* from, void* to, std::int64_t count);

template <class From, class To>
void convert_row(const void* from, void* to, std::int64_t count) {
  const From* source = static_cast<const From*>(from);
  To* target = static_cast<To*>(to);
  for (std::int64_t i = 0; i < count; ++i) target[i] = static_cast<To>(source[i]);
}

inline ConvertRow row_converter(DType from, DType to) {
  if (from == DType::f32) return to == DType::f32 ? convert_row<float, float> : convert_row<float, double>;
  return to == DType::f32 ? convert_row<double, float> : convert_row<double, double>;
}

}  // namespace fastsae
