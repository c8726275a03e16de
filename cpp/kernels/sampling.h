// The passes of a Gaussian code, whose layer makes [rows x 2 units]: means, and after them log-variances.
#pragma once

#include "core/random.h"
#include "kernels/kernel.h"
#include "kernels/step.h"
#include "math/gaussian.h"
#include "math/normal.h"

namespace fastsae {

// z = mean + sd noise, with fresh noise for each row of the data set and each epoch; sums w KL(code || N(0, 1)).
// What the way back multiplies with is kept, so that it needs neither the noise nor an exponential again.
template <class S>
struct SampleCode {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  View<const S> moments;  // [rows x 2 units]
  View<S> slopes;         // [rows x 3 units]: of KL by mean and by log-variance, of z by log-variance
  std::int64_t units;
  const S* weight;        // [rows]
  const double* numbers;  // [rows]
  const StepScalars* step;
  double seed = 0, epoch = 0;
  FS_HD void load() {
    seed = step->seed;
    epoch = step->epoch;
  }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S* sum) const {
    const S mean = moments(row, col), log_variance = Gaussian::clamp(moments(row, units + col));
    const S variance = exponential(log_variance);
    const Random4 random = draw(Stream::code, seed, epoch, numbers[row], col);
    const S noise = square_root(variance) * two_normals<S>(random.word[0], random.word[1]).first;
    slopes(row, col) = Gaussian::slope_by_mean(mean);
    slopes(row, units + col) = Gaussian::slope_by_log_variance(variance);
    slopes(row, 2 * units + col) = S(0.5) * noise;
    sum[0] = weight[row] * Gaussian::kl(mean, log_variance, variance);
    return mean + noise;
  }
};

// Of each latent from its summed KL: the slope of J by w KL, which is 0 below the free bits; sums the cost.
template <class S>
struct CodeCost {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  const double* sum_kl;  // [cols]
  const StepScalars* step;
  double beta, free_bits, warm_up;
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S* sum) const {
    const double mean = sum_kl[col] * step->inverse_total;
    const double weight = beta * (step->epoch < warm_up ? step->epoch / warm_up : 1);
    const bool is_free = mean < free_bits && free_bits > 0;
    sum[0] = static_cast<S>(weight * (is_free ? free_bits : mean));
    return is_free ? S(0) : static_cast<S>(weight * step->inverse_total);
  }
};

// Each element is the error sent back to z; writes those of the mean and of the log-variance.
template <class S>
struct CodeDelta {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  View<const S> slopes;  // as SampleCode left them
  View<S> delta;         // [rows x 2 units]
  std::int64_t units;
  const S* weight;  // [rows]
  const S* column;  // [units] of CodeCost
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S*) const {
    const S pull = weight[row] * column[col];
    delta(row, col) = z + pull * slopes(row, col);
    delta(row, units + col) = z * slopes(row, 2 * units + col) + pull * slopes(row, units + col);
    return z;
  }
};

// The moments as the code is drawn from them.
template <class S>
struct ClampMoments {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  std::int64_t units;
  FS_HD S operator()(std::int64_t, std::int64_t col, S z, S*) const {
    return col < units ? z : Gaussian::clamp(z);
  }
};

}  // namespace fastsae
