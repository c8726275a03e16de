// Reconstruction losses: one element's value, and its derivative by the output pre-activation.
// x: target, z: pre-activation, y = f(z): output.
#pragma once

#include "core/type_list.h"
#include "math/activations.h"

namespace fastsae {

struct SquaredError {
  static constexpr const char* name = "squared_error";
  template <class S>
  FS_HD static S value(S x, S, S y) {
    return (y - x) * (y - x);
  }
  template <class S>
  FS_HD static S delta(S x, S y, S slope) {
    return S(2) * (y - x) * slope;
  }
};

// Bernoulli cross-entropy of a sigmoid output, from its logits: finite for any z.
struct CrossEntropy {
  static constexpr const char* name = "cross_entropy";
  template <class S>
  FS_HD static S value(S x, S z, S) {
    return (z < S(0) ? S(0) : z) - x * z + log1p_of(exponential(-absolute(z)));
  }
  template <class S>
  FS_HD static S delta(S x, S y, S) {
    return y - x;
  }
};

using Losses = TypeList<SquaredError, CrossEntropy>;

}  // namespace fastsae
