// Activation functions: the value of a pre-activation, and the slope f' and the curvature f'' as functions of that
// value.
#pragma once

#include "core/type_list.h"
#include "math/elementary.h"

namespace fastsae {

struct Sigmoid {
  static constexpr const char* name = "sigmoid";
  static constexpr bool bounded = true;
  static constexpr double low = 0, high = 1;
  template <class S>
  FS_HD static S value(S z) {
    return S(1) / (S(1) + exponential(-z));
  }
  template <class S>
  FS_HD static S slope(S a) {
    return a * (S(1) - a);
  }
  template <class S>
  FS_HD static S curvature(S a) {
    return a * (S(1) - a) * (S(1) - S(2) * a);
  }
};

struct Tanh {
  static constexpr const char* name = "tanh";
  static constexpr bool bounded = true;
  static constexpr double low = -1, high = 1;
  template <class S>
  FS_HD static S value(S z) {
    return tanh_of(z);
  }
  template <class S>
  FS_HD static S slope(S a) {
    return S(1) - a * a;
  }
  template <class S>
  FS_HD static S curvature(S a) {
    return S(-2) * a * (S(1) - a * a);
  }
};

struct Relu {
  static constexpr const char* name = "relu";
  static constexpr bool bounded = false;
  static constexpr double low = 0, high = 0;
  template <class S>
  FS_HD static S value(S z) {
    return z < S(0) ? S(0) : z;  // NaN stays NaN
  }
  template <class S>
  FS_HD static S slope(S a) {
    return a > S(0) ? S(1) : S(0);
  }
  template <class S>
  FS_HD static S curvature(S) {
    return S(0);
  }
};

struct Softplus {
  static constexpr const char* name = "softplus";
  static constexpr bool bounded = false;
  static constexpr double low = 0, high = 0;
  template <class S>
  FS_HD static S value(S z) {
    return (z < S(0) ? S(0) : z) + log1p_of(exponential(-absolute(z)));
  }
  // log(1 + e^z) = a gives sigmoid(z) = 1 - e^-a.
  template <class S>
  FS_HD static S slope(S a) {
    return S(1) - exponential(-a);
  }
  template <class S>
  FS_HD static S curvature(S a) {
    const S e = exponential(-a);
    return e * (S(1) - e);
  }
};

struct Identity {
  static constexpr const char* name = "identity";
  static constexpr bool bounded = false;
  static constexpr double low = 0, high = 0;
  template <class S>
  FS_HD static S value(S z) {
    return z;
  }
  template <class S>
  FS_HD static S slope(S) {
    return S(1);
  }
  template <class S>
  FS_HD static S curvature(S) {
    return S(0);
  }
};

using Activations = TypeList<Sigmoid, Tanh, Relu, Softplus, Identity>;

}  // namespace fastsae
