// Passes over a matrix that no product writes: vectors per unit, and the optimiser's update.
#pragma once

#include "kernels/kernel.h"
#include "math/activations.h"
#include "math/optimizers.h"
#include "math/penalties.h"

namespace fastsae {

// The KL penalty of a layer from its summed activations: writes each unit's slope, sums the penalty.
// rho_hat is kept as the raw mean activation; the moving average starts where decay is 0.
template <class S, class F>
struct KlColumn {
  using Scalar = S;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  const double* sum_a;    // [cols] weighted sum of activations
  const double* rho_hat;  // [cols] previous mean
  double* next_rho_hat;   // [cols] committed by the optimiser step
  double inverse_total;   // 1 / total weight
  double decay;           // of the moving average; 0: the batch mean
  double rho, beta;
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S* sum) const {
    const double batch_mean = sum_a[col] * inverse_total;
    const double mean = decay > 0 ? decay * rho_hat[col] + (1 - decay) * batch_mean : batch_mean;
    const double width = F::high - F::low;
    const double margin = sizeof(S) == 4 ? 1e-7 : 1e-12;
    const double q = KlPenalty::clamp((mean - F::low) / width, margin);
    next_rho_hat[col] = mean;
    sum[0] = static_cast<S>(KlPenalty::value(rho, q));
    return static_cast<S>(beta * inverse_total * KlPenalty::slope(rho, q) / width);
  }
};

// A bias gradient from the summed deltas; sums its square.
template <class S>
struct BiasGradient {
  using Scalar = S;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  const double* sum_delta;  // [cols]
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S* sum) const {
    const S g = static_cast<S>(sum_delta[col]);
    sum[0] = g * g;
    return g;
  }
};

// One optimiser step over a parameter.
template <class S, class Step>
struct Update {
  using Scalar = S;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  View<const S> gradient;
  View<S> m, v;  // only as many as the optimiser has
  typename Step::template Scalars<S> scalars;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S p, S*) const {
    const S g = gradient(row, col);
    S unused = S(0);
    if constexpr (Step::moments == 2)
      return Step::next(p, g, m(row, col), v(row, col), scalars);
    else if constexpr (Step::moments == 1)
      return Step::next(p, g, m(row, col), unused, scalars);
    else
      return Step::next(p, g, unused, unused, scalars);
  }
};

}  // namespace fastsae
