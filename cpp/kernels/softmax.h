// The output of a classifier: y = softmax(z) of each row, with the loss -sum_k x_k log y_k, which is the cross-entropy
// of a target x that is a distribution. Its derivative by z is y sum_k x_k - x.
#pragma once

#include "kernels/kernel.h"
#include "kernels/step.h"
#include "math/elementary.h"

namespace fastsae {

// A pass over one number for each row: log sum exp of its logits less their largest, which is taken off the logits, so
// that no logit is too large for exp. In training also the sum of the row's target.
template <class S>
struct SoftmaxRows {
  using Scalar = double;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  View<S> logits;        // [rows x classes]
  View<const S> target;  // [rows x classes], or nothing
  double* mass;          // [rows], with a target
  std::int64_t classes;
  FS_HD double operator()(std::int64_t row, std::int64_t, double, double*) const {
    S* z = logits.data + row * logits.stride;
    S largest = z[0];
    for (std::int64_t k = 1; k < classes; ++k) largest = z[k] > largest ? z[k] : largest;
    double sum = 0;
    for (std::int64_t k = 0; k < classes; ++k) {
      z[k] -= largest;
      sum += static_cast<double>(exponential(z[k]));
    }
    if (target.data != nullptr) {
      double all = 0;
      for (std::int64_t k = 0; k < classes; ++k) all += static_cast<double>(target(row, k));
      mass[row] = all;
    }
    return natural_log(sum);
  }
};

// -x log y; a logit that is infinitely below the largest costs nothing where x is 0.
template <class S>
FS_HD S softmax_loss(S x, S log_y) {
  return x == S(0) ? S(0) : -x * log_y;
}

// Training: a logit becomes the delta; sums the delta (the bias gradient) and the loss.
template <class S>
struct SoftmaxDelta {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 2;
  const double* log_sum;  // [rows]
  const double* mass;     // [rows]
  const S* weight;        // [rows]
  View<const S> target;   // [rows x cols]
  const StepScalars* step;
  double factor;  // of the loss
  S scale = 0;    // factor / total weight
  FS_HD void load() { scale = static_cast<S>(factor * step->inverse_total); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S x = target(row, col);
    const S log_y = z - static_cast<S>(log_sum[row]);
    const S delta = weight[row] * scale * (exponential(log_y) * static_cast<S>(mass[row]) - x);
    sum[0] = delta;
    sum[1] = weight[row] * softmax_loss(x, log_y);
    return delta;
  }
};

// Inference: a logit becomes the probability.
template <class S>
struct SoftmaxValue {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const double* log_sum;  // [rows]
  FS_HD S operator()(std::int64_t row, std::int64_t, S z, S*) const {
    return exponential(z - static_cast<S>(log_sum[row]));
  }
};

// Scoring: the same, and each row's loss is summed.
template <class S>
struct SoftmaxLoss {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::row_sum;
  static constexpr int sums = 1;
  const double* log_sum;  // [rows]
  View<const S> target;   // [rows x cols]
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S log_y = z - static_cast<S>(log_sum[row]);
    const S y = exponential(log_y);
    sum[0] = softmax_loss(target(row, col), log_y);
    return y;
  }
};

}  // namespace fastsae
