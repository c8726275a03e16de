// What a sparse code's encoder and decoder do where nothing is trained.
#pragma once

#include "kernels/dense_codes.h"

namespace fastsae {

// The reported code.
template <class S>
struct InferCode : EachElement<S> {
  static constexpr bool epilogue = true;
  const S* bias;
  const S* scale;      // [cols], or null: 1
  const S* threshold;  // [cols], or null
  const double* bar;   // then one for all, or null: 0
  bool reported;       // or what multiplies the decoder's rows
  FS_HD S operator()(std::int64_t, std::int64_t col, S product, S*) const {
    const S z = product + bias[col], c = scale == nullptr ? z : z * scale[col];
    const S least = bar != nullptr && *bar > 0 ? static_cast<S>(*bar) : S(0);
    const bool off = threshold != nullptr ? z <= threshold[col] : c <= least;
    return off ? S(0) : reported ? c : z;
  }
};

template <class S>
struct InferGate : EachElement<S> {
  static constexpr bool epilogue = true;
  GateParameters<S> gate;
  const S* scale;
  FS_HD S operator()(std::int64_t, std::int64_t col, S p, S*) const {
    const S pi = p + gate.gate_bias[col], magnitude = gate.magnitude(p, col);
    if (pi <= S(0) || magnitude <= S(0)) return S(0);
    return scale == nullptr ? magnitude : magnitude * scale[col];
  }
};

// A code as it is reported becomes what multiplies the decoder's rows.
template <class S>
struct Unscaled : EachElement<S> {
  View<const S> code;
  const S* scale;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const S c = code(row, col);
    return c == S(0) ? c : c / scale[col];
  }
};

// The squared distance of each row, which stays as it is, from its target.
template <class S>
struct SquaredDistance {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::row_sum;
  static constexpr int sums = 1;
  View<const S> target;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S y, S* sum) const {
    const S distance = y - target(row, col);
    sum[0] = distance * distance;
    return y;
  }
};

// The decoder's product becomes the output.
template <class S>
struct AddExtra : EachElement<S> {
  static constexpr bool epilogue = true;
  const S* bias;
  View<const S> extra;  // or no data
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S*) const {
    const S y = z + bias[col];
    return extra.data == nullptr ? y : y + extra(row, col);
  }
};

}  // namespace fastsae
