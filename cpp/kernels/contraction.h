// The passes of the contractive penalty; models/contraction.h has the mathematics.
#pragma once

#include "core/random.h"
#include "kernels/kernel.h"
#include "kernels/step.h"
#include "math/activations.h"
#include "math/normal.h"
#include "math/penalties.h"

namespace fastsae {

// f' and f'' of activations.
template <class S, class F>
struct Slopes {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  View<const S> activation;  // [rows x cols]
  View<S> curvature;         // [rows x cols] f''
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const S a = activation(row, col);
    curvature(row, col) = F::curvature(a);
    return F::slope(a);
  }
};

// The squared length of each row, which stays as it is.
template <class S>
struct SquaredRows {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::row_sum;
  static constexpr int sums = 1;
  FS_HD S operator()(std::int64_t, std::int64_t, S z, S* sum) const {
    sum[0] = z * z;
    return z;
  }
};

// Adds the penalty's delta, with p = f' of a row and q = f' of its neighbour; a row without one is its own. Sums all
// deltas of the unit (the bias gradient), w e with e = lambda p^2 + gamma (p - q)^2, and w e |W_j|^2 (the penalty).
template <class S>
struct Contract {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 3;
  View<const S> slope, curvature;  // [rows x cols]
  View<const S> neighbour_slope;   // [rows x cols]
  View<S> neighbour;               // [rows x cols] its curvature, which becomes its delta
  const S* weight;                 // [rows]
  const double* squares;           // [cols] |W_j|^2
  const StepScalars* step;
  double jacobian, hessian;  // lambda and gamma
  S scale = 0;               // 2 / total weight
  FS_HD void load() { scale = static_cast<S>(2 * step->inverse_total); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S lambda = static_cast<S>(jacobian), gamma = static_cast<S>(hessian);
    const S square = static_cast<S>(squares[col]), w = weight[row];
    const S p = slope(row, col), away = p - neighbour_slope(row, col);
    const S pull = w * scale * square;
    const S delta = z + pull * (lambda * p + gamma * away) * curvature(row, col);
    const S other = -pull * gamma * away * neighbour(row, col);
    neighbour(row, col) = other;
    sum[0] = delta + other;
    sum[1] = w * (lambda * p * p + gamma * away * away);
    sum[2] = sum[1] * square;
    return delta;
  }
};

// Weight gradient: adds decay, L1 and the penalty's, 2 mean(e_j) W_j; sums as SparseGradient does.
template <class S>
struct ContractedGradient {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 2;
  View<const S> weight;   // [rows x cols]
  const double* sum_row;  // [rows] sum of w e
  const StepScalars* step;
  double decay, l1;
  double scale = 0;  // 2 / total weight
  FS_HD void load() { scale = 2 * step->inverse_total; }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S w = weight(row, col);
    const S push = static_cast<S>(l1) * L1Penalty::slope(w);
    const S g = z + static_cast<S>(decay + scale * sum_row[row]) * w + push;
    sum[0] = g * g;
    sum[1] = (static_cast<S>(decay) * w + 2 * push) * w;
    return g;
  }
};

// The tangent t = f' v of a layer from v = W t_below; keeps what its way back adds to the delta of z. Sums t^2.
template <class S>
struct Tangent {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  View<const S> slope;  // [rows x cols]
  View<S> bend;         // [rows x cols] f'', which becomes f'' v
  FS_HD S operator()(std::int64_t row, std::int64_t col, S v, S* sum) const {
    bend(row, col) *= v;
    const S t = slope(row, col) * v;
    sum[0] = t * t;
    return t;
  }
};

// Adds what comes back through a tangent to the delta; the tangent's own error becomes that of v. Sums the delta.
template <class S>
struct TangentDelta {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  View<S> error;              // [rows x cols]
  View<const S> slope, bend;  // [rows x cols]
  S factor;                   // of the error
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S back = factor * error(row, col);
    error(row, col) = slope(row, col) * back;
    const S delta = z + bend(row, col) * back;
    sum[0] = delta;
    return delta;
  }
};

}  // namespace fastsae
