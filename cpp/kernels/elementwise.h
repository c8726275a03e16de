// Passes over a matrix that no product writes: vectors per unit, and the optimiser's update.
#pragma once

#include "kernels/kernel.h"
#include "kernels/step.h"
#include "math/activations.h"
#include "math/optimizers.h"
#include "math/penalties.h"

namespace fastsae {

// The KL penalty of a layer from its summed activations: writes each unit's slope, sums the penalty.
// rho_hat is kept as the raw mean activation; the moving average starts where decay is 0.
template <class S, class F>
struct KlColumn {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  const double* sum_a;    // [cols] weighted sum of activations
  const double* rho_hat;  // [cols] previous mean
  double* next_rho_hat;   // [cols] committed by the optimiser step
  const StepScalars* step;
  double rho, beta;
  double share;  // 1 / positions of a map
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S* sum) const {
    const double batch_mean = sum_a[col] * step->inverse_total * share;
    const double decay = step->rho_hat_decay;
    const double mean = decay > 0 ? decay * rho_hat[col] + (1 - decay) * batch_mean : batch_mean;
    const double width = F::high - F::low;
    const double margin = sizeof(S) == 4 ? 1e-7 : 1e-12;
    const double q = KlPenalty::clamp((mean - F::low) / width, margin);
    next_rho_hat[col] = mean;
    sum[0] = static_cast<S>(KlPenalty::value(rho, q));
    return static_cast<S>(beta * step->inverse_total * share * KlPenalty::slope(rho, q) / width);
  }
};

// Sums weighted activations; changes nothing.
template <class S>
struct WeightedSum {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  const S* weight;  // [rows]
  FS_HD S operator()(std::int64_t row, std::int64_t, S a, S* sum) const {
    sum[0] = weight[row] * a;
    return a;
  }
};

// A bias gradient from the summed deltas, which may be those of each position of a map; sums its square.
template <class S>
struct BiasGradient {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  const double* sum_delta;  // [positions * cols]
  std::int64_t positions = 1, cols = 0;
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S* sum) const {
    double total = sum_delta[col];
    for (std::int64_t position = 1; position < positions; ++position)
      total += sum_delta[position * cols + col];
    const S g = static_cast<S>(total);
    sum[0] = g * g;
    return g;
  }
};

// Sums of each column of a weight matrix, which stays as it is, twice what it costs: decay |w|^2 / 2 + l1 |w|.
template <class S>
struct WeightCost {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  S decay, l1;
  FS_HD S operator()(std::int64_t, std::int64_t, S w, S* sum) const {
    sum[0] = (decay * w + 2 * l1 * L1Penalty::slope(w)) * w;
    return w;
  }
};

// One optimiser step over a parameter, whose gradient is scaled down if the whole one was too long.
template <class S, class Step>
struct Update {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  static constexpr int moments = Step::moments;
  View<const S> gradient;
  View<S> m, v;  // only as many as the optimiser has
  OptimizerConstants constants;
  const StepScalars* step;
  const StepLog* log;
  typename Step::template Scalars<S> scalars = {};
  S scale = 1;  // of a gradient that was too long
  FS_HD void load() {
    scalars = Step::template at_step<S>(constants, *step);
    scale = static_cast<S>(log->gradient_scale);
  }
  FS_HD bool idle() const { return log->failed != 0; }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S p, S*) const {
    const S g = scale * gradient(row, col);
    S unused = S(0);
    if constexpr (Step::moments == 2)
      return Step::next(p, g, m(row, col), v(row, col), scalars);
    else if constexpr (Step::moments == 1)
      return Step::next(p, g, m(row, col), unused, scalars);
    else
      return Step::next(p, g, unused, unused, scalars);
  }
};

// What schedule-free steps have averaged, in place of the parameter they go on from.
template <class S>
struct Average {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  View<const S> z;
  S back;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S p, S*) const {
    return SignSgdStep::average(p, z(row, col), back);
  }
};

// Closes a step: scales its sums to the parts of J, and adds them to the log unless something is not finite.
struct CloseStep {
  using Scalar = double;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const StepTotals* totals;
  const StepScalars* step;
  StepCost* cost;
  StepLog* log;  // null outside of training
  double loss_factor;
  FS_HD double operator()(std::int64_t, std::int64_t, double z, double*) const {
    if (log != nullptr && log->failed != 0) return z;  // the cost stays that of the step that failed
    cost->reconstruction = loss_factor * step->inverse_total * totals->loss;
    cost->penalty = step->inverse_total * totals->element_penalty + totals->kl;
    cost->decay = totals->twice_decay / 2;
    cost->gradient_norm = square_root(totals->squared_gradient);
    if (log == nullptr) return z;
    // The difference of a number with itself is 0 unless it is infinite or NaN.
    const double all = cost->reconstruction + cost->penalty + cost->decay + cost->gradient_norm;
    if (all - all != 0) {
      log->failed = 1;
      return z;
    }
    const double most = step->max_gradient_norm;
    log->gradient_scale = cost->gradient_norm > most ? most / cost->gradient_norm : 1;
    log->steps += 1;
    log->weight += step->total;
    log->sums.reconstruction += step->total * cost->reconstruction;
    log->sums.penalty += step->total * cost->penalty;
    log->sums.decay += step->total * cost->decay;
    log->sums.gradient_norm += step->total * cost->gradient_norm;
    return z;
  }
};

// Each row of the output is one number of a vector: the weight of a row for all of its positions.
template <class S>
struct SpreadWeight {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* weight;  // [rows]
  FS_HD S operator()(std::int64_t row, std::int64_t, S, S*) const { return weight[row]; }
};

// Of a sequence of matrices [rows x cols], the transposed ones: out is [matrices * cols x rows].
template <class S>
struct Transposed {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* from;
  std::int64_t rows, cols;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const std::int64_t matrix = row / cols;
    return from[matrix * rows * cols + col * cols + (row - matrix * cols)];
  }
};

// The sum of each row, which stays as it is: the loss of a row from those of its positions.
struct SumRow {
  using Scalar = double;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::row_sum;
  static constexpr int sums = 1;
  FS_HD double operator()(std::int64_t, std::int64_t, double z, double* sum) const {
    sum[0] = z;
    return z;
  }
};

// Makes a moving average permanent.
struct KeepRhoHat {
  using Scalar = double;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const double* next;  // [cols]
  const StepLog* log;
  FS_HD bool idle() const { return log->failed != 0; }
  FS_HD double operator()(std::int64_t, std::int64_t col, double, double*) const { return next[col]; }
};

}  // namespace fastsae
