// Passes of a sparse code: over its rows and latents, and over the scalars of its step.
#pragma once

#include "kernels/code_sums.h"
#include "kernels/kernel.h"
#include "kernels/step.h"
#include "math/elementary.h"

namespace fastsae {

// What is the same for each kernel that makes elements and no sums.
template <class S>
struct EachElement {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
};

template <class S, int count>
struct SumsColumns {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = count;
};

// x - b.
template <class S>
struct Centered : EachElement<S> {
  View<const S> x;
  const S* bias;  // [cols]
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const { return x(row, col) - bias[col]; }
};

// A copy, and the weighted sums of its columns.
template <class S>
struct CopySumming : SumsColumns<S, 1> {
  View<const S> from;
  const S* weight;  // [rows]
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S* sum) const {
    const S value = from(row, col);
    sum[0] = weight[row] * value;
    return value;
  }
};

// The weighted squared distance of each row from the mean.
template <class S>
struct SquaredDeviation {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::row_sum;
  static constexpr int sums = 1;
  const double* column_sums;
  const S* weight;  // [rows]
  const StepScalars* step;
  double inverse_total = 0;
  FS_HD void load() { inverse_total = step->inverse_total; }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    S distance = static_cast<S>(static_cast<double>(z) - column_sums[col] * inverse_total);
    constexpr S kRounding = sizeof(S) == 4 ? S(1e-6) : S(2e-15);  // is no variance
    if (absolute(distance) <= kRounding * absolute(z)) distance = S(0);
    sum[0] = weight[row] * distance * distance;
    return z;
  }
};

// Selected elements become what multiplies the decoder's rows.
template <class S>
struct Coefficient : EachElement<S> {
  const std::int32_t* latents;
  const S* scale;  // [latents], or null
  bool rectified;
  FS_HD S operator()(std::int64_t, std::int64_t col, S z, S*) const {
    if (rectified && z <= S(0)) return S(0);
    return scale == nullptr || z == S(0) ? z : z / scale[latents[col]];
  }
};

// Sums of columns, which stay as they are, and of their squares.
template <class S>
struct ColumnSum : SumsColumns<S, 1> {
  FS_HD S operator()(std::int64_t, std::int64_t, S z, S* sum) const {
    sum[0] = z;
    return z;
  }
};
template <class S>
struct SquareSum : SumsColumns<S, 1> {
  FS_HD S operator()(std::int64_t, std::int64_t, S z, S* sum) const {
    sum[0] = z * z;
    return z;
  }
};

// Gradient by a bias of the decoder: its outputs' sums, less what its input lost by it.
template <class S>
struct DecoderBiasGradient : SumsColumns<S, 1> {
  const double* output_sums;
  const double* more_sums;  // or null
  const S* through_input;   // [cols], or null
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S* sum) const {
    double total = output_sums[col];
    if (more_sums != nullptr) total += more_sums[col];
    if (through_input != nullptr) total -= static_cast<double>(through_input[col]);
    const S g = static_cast<S>(total);
    sum[0] = g * g;
    return g;
  }
};

// Scalars. What has no variance teaches nothing.
FS_HD double share_of(double weight, double divisor) { return divisor > 0 ? weight / divisor : 0.0; }

struct CodeFactors : EachElement<double> {
  CodeSums* numbers;
  CodeConstants constants;
  const StepScalars* step;
  const double* data_variance;  // or null: that of the batch
  FS_HD double operator()(std::int64_t, std::int64_t, double z, double*) const {
    const double mean = step->inverse_total;
    const double variance = data_variance != nullptr ? *data_variance : numbers->variance * mean;
    const double divisor = constants.divisor > 0 ? constants.divisor : variance;
    numbers->factor = 2 * mean * share_of(1, divisor);
    numbers->gate_factor = constants.gate_weight * numbers->factor;
    return z;
  }
};

// Before the auxiliary output is made.
struct AuxiliaryFactor : EachElement<double> {
  CodeSums* numbers;
  CodeConstants constants;
  const StepScalars* step;
  FS_HD double operator()(std::int64_t, std::int64_t, double z, double*) const {
    const double mean = step->inverse_total, kind = constants.auxiliary_divisor;
    const double divisor =
        kind > 0 ? kind : (kind < 0 ? numbers->residual_variance : numbers->variance) * mean;
    const double full = constants.auxiliary_share;
    const double share = full > 0 && numbers->dead < full ? numbers->dead / full : 1.0;
    numbers->auxiliary_factor =
        numbers->dead > 0 ? 2 * mean * share_of(constants.auxiliary_weight * share, divisor) : 0.0;
    return z;
  }
};

// Hands the parts of J to CloseStep.
struct CloseCode : EachElement<double> {
  const CodeSums* numbers;
  CodeConstants constants;
  const StepScalars* step;
  StepTotals* totals;
  FS_HD static double sparsity(const CodeSums& s, const CodeConstants& c, const StepScalars& step) {
    const double weight = c.sparsity_weight * step.penalty_share;
    const double l0 = s.weighted_active * step.inverse_total;
    if (c.target_l0 > 0) return weight * (l0 / c.target_l0 - 1) * (l0 / c.target_l0 - 1);
    return weight * (c.counts_active ? l0 : s.sparsity * step.inverse_total);
  }
  FS_HD static double auxiliary(const CodeSums& s, const CodeConstants& c, const StepScalars& step) {
    return (s.auxiliary_factor * s.auxiliary_loss + s.gate_factor * s.gate_loss) / 2 +
           c.pre_act_weight * s.pre_act * step.inverse_total;
  }
  FS_HD double operator()(std::int64_t, std::int64_t, double z, double*) const {
    totals->loss = numbers->factor / 2 * numbers->loss * step->total;
    totals->kl = sparsity(*numbers, constants, *step) + auxiliary(*numbers, constants, *step);
    return z;
  }
};

// What a good step leaves behind. A step that failed leaves all as it was.
struct KeepMonitor : EachElement<double> {
  const CodeSums* numbers;
  CodeConstants constants;
  const StepScalars* step;
  const StepLog* log;
  CodeMonitor* monitor;
  double* bar;  // the moving threshold, or null
  double bar_decay;
  std::int64_t rows;
  FS_HD bool idle() const { return log->failed != 0; }
  FS_HD double operator()(std::int64_t, std::int64_t, double z, double*) const {
    monitor->rows += static_cast<double>(rows);
    monitor->active += numbers->active;
    monitor->squared_error += numbers->last_loss;
    monitor->variance += numbers->variance;
    monitor->auxiliary += step->total * CloseCode::auxiliary(*numbers, constants, *step);
    monitor->sparsity += step->total * CloseCode::sparsity(*numbers, constants, *step);
    if (bar != nullptr && numbers->active > 0)
      *bar = *bar < 0 ? numbers->smallest : bar_decay * *bar + (1 - bar_decay) * numbers->smallest;
    return z;
  }
};

// Rows since each latent fired.
struct KeepSince : EachElement<double> {
  const double* fired;  // [latents]: rows of the batch
  double* fired_rows;   // [latents]: rows since the last reset
  std::int64_t rows;
  const StepLog* log;
  FS_HD bool idle() const { return log->failed != 0; }
  FS_HD double operator()(std::int64_t, std::int64_t col, double since, double*) const {
    fired_rows[col] += fired[col];
    return fired[col] > 0 ? 0.0 : since + static_cast<double>(rows);
  }
};

}  // namespace fastsae
