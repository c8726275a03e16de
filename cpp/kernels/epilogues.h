// What happens to one output of a product, before it leaves the cache.
#pragma once

#include "kernels/kernel.h"
#include "kernels/step.h"
#include "math/activations.h"
#include "math/losses.h"
#include "math/penalties.h"

namespace fastsae {

// a = f(z + bias).
template <class S, class F>
struct Infer {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* bias;  // [cols]
  FS_HD S operator()(std::int64_t, std::int64_t col, S z, S*) const { return F::value(z + bias[col]); }
};

// The same in training: also sums w a and w penalty(a) over the rows.
template <class S, class F, class P>
struct Activate {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 2;
  const S* bias;    // [cols]
  const S* weight;  // [rows]
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S a = F::value(z + bias[col]);
    sum[0] = weight[row] * a;
    sum[1] = weight[row] * P::value(a);
    return a;
  }
};

// Output layer in training: z becomes the delta; sums the delta (the bias gradient) and the loss.
template <class S, class F, class L>
struct OutputDelta {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 2;
  const S* bias;         // [cols]
  const S* weight;       // [rows]
  View<const S> target;  // [rows x cols]
  const StepScalars* step;
  double factor;  // of the loss
  S scale = 0;    // factor / total weight
  FS_HD void load() { scale = static_cast<S>(factor * step->inverse_total); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S x = target(row, col);
    const S logit = z + bias[col];
    const S y = F::value(logit);
    const S delta = weight[row] * scale * L::delta(x, y, F::slope(y));
    sum[0] = delta;
    sum[1] = weight[row] * L::value(x, logit, y);
    return delta;
  }
};

// The same where each element of the loss has a weight of its own.
template <class S, class F, class L>
struct EmphasisedDelta {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 2;
  OutputDelta<S, F, L> plain;
  View<const S> emphasis;  // [rows x cols]
  FS_HD void load() { plain.load(); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S share = emphasis(row, col);
    const S delta = share * plain(row, col, z, sum);
    sum[0] = delta;
    sum[1] = share * sum[1];
    return delta;
  }
};

// Output layer in scoring: z becomes the reconstruction; each row's loss is summed.
template <class S, class F, class L>
struct RowLoss {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::row_sum;
  static constexpr int sums = 1;
  const S* bias;         // [cols]
  View<const S> target;  // [rows x cols]
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S logit = z + bias[col];
    const S y = F::value(logit);
    sum[0] = L::value(target(row, col), logit, y);
    return y;
  }
};

// Hidden layer: z, the error sent back by the next layer, becomes the delta. `column` is the KL slope of
// each unit, so that KL costs one addition and no pass of its own. Sums the delta (the bias gradient).
template <class S, class F, class P>
struct HiddenDelta {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 1;
  View<const S> activation;  // [rows x cols]
  const S* weight;           // [rows]
  const S* column;           // [cols] beta / total weight * dKL/d(mean activation)
  const StepScalars* step;
  double beta;  // of the elementwise penalty
  S scale = 0;  // beta / total weight
  FS_HD void load() { scale = static_cast<S>(beta * step->inverse_total); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S a = activation(row, col);
    const S sparsity = column[col] + scale * P::slope(a);
    const S delta = (z + weight[row] * sparsity) * F::slope(a);
    sum[0] = delta;
    return delta;
  }
};

// Weight gradient: adds the weight decay; sums the squared gradient and twice the decay's part of J.
template <class S>
struct DecayedGradient {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 2;
  View<const S> weight;  // [rows x cols]
  S decay;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S w = weight(row, col);
    const S pull = decay * w;
    const S g = z + pull;
    sum[0] = g * g;
    sum[1] = pull * w;
    return g;
  }
};

// The same with an L1 penalty on the weights too.
template <class S>
struct SparseGradient {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::col_sum;
  static constexpr int sums = 2;
  View<const S> weight;  // [rows x cols]
  S decay, l1;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    const S w = weight(row, col);
    const S pull = decay * w, push = l1 * L1Penalty::slope(w);
    const S g = z + pull + push;
    sum[0] = g * g;
    sum[1] = (pull + 2 * push) * w;
    return g;
  }
};

}  // namespace fastsae
