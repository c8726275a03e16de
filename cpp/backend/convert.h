// Rows of any type into rows of a tensor's type.
#pragma once

#include "backend/backend.h"
#include "math/low_precision.h"

namespace fastsae {

template <class S, class From>
FS_HD S element_as(From value) {
  return static_cast<S>(value);
}
template <class S>
FS_HD S element_as(Bf16 value) {
  return static_cast<S>(value.value());
}
template <class S>
FS_HD S element_as(F16 value) {
  return static_cast<S>(value.value());
}

// Calls f with an element of the type that rows may come in.
template <class F>
auto with_element(DType dtype, F&& f) {
  if (dtype == DType::f64) return f(double{});
  if (dtype == DType::bf16) return f(Bf16{});
  if (dtype == DType::f16) return f(F16{});
  return f(float{});
}

using ConvertRow = void (*)(const void* from, void* to, std::int64_t count);

template <class From, class To>
void convert_row(const void* from, void* to, std::int64_t count) {
  const From* source = static_cast<const From*>(from);
  To* target = static_cast<To*>(to);
  for (std::int64_t i = 0; i < count; ++i) target[i] = element_as<To>(source[i]);
}

inline ConvertRow row_converter(DType from, DType to) {
  return with_element(from, [to](auto element) -> ConvertRow {
    using From = decltype(element);
    return to == DType::f32 ? convert_row<From, float> : convert_row<From, double>;
  });
}

// Whether a row holds NaN or a number that is not in [low, high].
template <class From>
FS_HD bool outside(From value, double low, double high) {
  const double number = element_as<double>(value);
  return !(number >= low && number <= high);
}

}  // namespace fastsae
