// Codes of a row tile that is written down: ReLU, JumpReLU and Gated, where many elements are not zero.
#pragma once

#include "kernels/codes.h"

namespace fastsae {

// What the penalty p(a, q) of an element is, q being 1 or the norm of its decoder row.
enum class CodePenalty : std::int32_t { none, l1, tanh };

template <class S>
struct ElementCost {
  S value, by_activation, by_norm;
};

template <class S>
FS_HD ElementCost<S> element_cost(CodePenalty kind, S a, S q, S scale) {
  if (kind == CodePenalty::none) return {S(0), S(0), S(0)};
  if (kind == CodePenalty::l1) return {a * q, q, a};
  const S t = tanh_of(scale * a * q), slope = (S(1) - t * t) * scale;
  return {t, slope * q, slope * a};
}

// Sums of a column: elements that are active, their rows' weights, the penalty, its slope by the norm, the distance of a
// dead latent's elements from the threshold, and the weights of rows with an element near it.
struct ForwardSums {
  static constexpr int count = 6;
  enum { active, weighted, penalty, by_norm, below, near };
};

// Sums of a column: delta; weights of a dead latent's elements below the threshold; near it the slope by the element,
// and that by its row's count.
struct BackwardSums {
  static constexpr int count = 4;
  enum { delta, below, near_slope, near_count };
};

// What is the same for all elements of a step's penalties: their slopes but for what each element adds.
template <class S>
struct PenaltySlopes {
  double sparsity_weight, pre_act_weight;
  const StepScalars* step;
  S sparsity = 0, pre_act = 0;
  FS_HD void load() {
    sparsity = static_cast<S>(sparsity_weight * step->penalty_share * step->inverse_total);
    pre_act = static_cast<S>(pre_act_weight * step->inverse_total);
  }
};

template <class S>
struct Thresholded {
  const S* bias;        // [cols], or null: z has it
  const S* threshold;   // [cols], or null: 0
  const S* norms;       // [cols], of the penalty, or null: 1
  const S* weight;      // [rows]
  const S* lengths;     // [cols]: what the distances of dead latents are weighed by
  const double* since;  // [cols], or null: no latent counts as dead
  double limit;
  S half_width;  // of the window around the threshold; 0 without one
  S tanh_scale;
  CodePenalty penalty;
  const S* count_slope;  // [rows], or null
  FS_HD bool is_near(S z, S bar) const { return absolute(z - bar) < half_width; }
  FS_HD S bar(std::int64_t col) const { return threshold == nullptr ? S(0) : threshold[col]; }
  FS_HD bool is_dead(std::int64_t col) const { return since != nullptr && since[col] > limit; }
  FS_HD ElementCost<S> cost(S a, std::int64_t col) const {
    return element_cost(penalty, a, norms == nullptr ? S(1) : norms[col], tanh_scale);
  }

  // a = z where it is above the threshold, else 0.
  FS_HD S forward(S z, std::int64_t row, std::int64_t col, S* sum) const {
    const S least = bar(col), w = weight[row];
    const bool off = z <= least;  // NaN is on, and stays visible
    const S a = off ? S(0) : z;
    const ElementCost<S> price = cost(a, col);
    sum[ForwardSums::active] = off ? S(0) : S(1);
    sum[ForwardSums::weighted] = off ? S(0) : w;
    sum[ForwardSums::penalty] = w * price.value;
    sum[ForwardSums::by_norm] = w * price.by_norm;
    sum[ForwardSums::below] = is_dead(col) && z < least ? w * (least - z) : S(0);
    sum[ForwardSums::near] = is_near(z, least) ? w : S(0);
    return a;
  }

  // The slope by the coefficient becomes that by z.
  FS_HD S backward(S z, S slope, const PenaltySlopes<S>& by, std::int64_t row, std::int64_t col,
                   S* sum) const {
    const S least = bar(col), w = weight[row];
    const bool on = z > least, below = is_dead(col) && z < least, near = is_near(z, least);
    const S g = slope + w * by.sparsity * cost(on ? z : S(0), col).by_activation;
    const S delta = (on ? g : S(0)) - (below ? w * by.pre_act * lengths[col] : S(0));
    sum[BackwardSums::delta] = delta;
    sum[BackwardSums::below] = below ? w : S(0);
    sum[BackwardSums::near_slope] = near ? g : S(0);
    sum[BackwardSums::near_count] = near && count_slope != nullptr ? count_slope[row] : S(0);
    return delta;
  }
};

template <class S>
struct ForwardCode : SumsColumns<S, ForwardSums::count> {
  static constexpr bool epilogue = true;
  Thresholded<S> code;
  View<S> keep;  // z with its bias
  FS_HD S operator()(std::int64_t row, std::int64_t col, S product, S* sum) const {
    const S z = code.bias == nullptr ? product : product + code.bias[col];
    keep(row, col) = z;
    return code.forward(z, row, col, sum);
  }
};

// Counts the active elements of a row.
template <class S>
struct ActiveCount {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::row_sum;
  static constexpr int sums = 1;
  FS_HD S operator()(std::int64_t, std::int64_t, S a, S* sum) const {
    sum[0] = a != S(0) ? S(1) : S(0);
    return a;
  }
};

// Of each row's count, or of how many elements its list has, the slope of the squared distance from a target; sums
// these squares.
template <class S>
struct CountSlope : SumsColumns<S, 1> {
  const double* counts;        // [rows], or null
  const std::int32_t* starts;  // then [rows + 1]
  const S* weight;             // [rows]
  double target;
  FS_HD S operator()(std::int64_t row, std::int64_t, S, S* sum) const {
    const double count = counts != nullptr ? counts[row] : static_cast<double>(starts[row + 1] - starts[row]);
    const S off = static_cast<S>(count / target - 1);
    sum[0] = weight[row] * off * off;
    return weight[row] * S(2) * off / static_cast<S>(target);
  }
};

template <class S>
struct BackwardCode : SumsColumns<S, BackwardSums::count> {
  static constexpr bool epilogue = true;
  Thresholded<S> code;
  View<const S> z;
  PenaltySlopes<S> by;
  FS_HD void load() { by.load(); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S slope, S* sum) const {
    return code.backward(z(row, col), slope, by, row, col, sum);
  }
};

// A tile that was multiplied.
struct CountTile : EachElement<double> {
  CodeSums* numbers;
  FS_HD double operator()(std::int64_t, std::int64_t, double z, double*) const {
    numbers->dense_tiles += 1;
    return z;
  }
};

struct GateSums {
  static constexpr int count = 4;
  enum { gate, magnitude, gain, delta };
};

// pi = p + b_gate opens the gate, exp(r) p + b_mag is what passes.
template <class S>
struct GateParameters {
  const S* gate_bias;
  const S* magnitude_bias;
  const S* gain;    // exp(r)
  const S* norms;   // or null: 1
  const S* weight;  // [rows]
  FS_HD S magnitude(S p, std::int64_t col) const { return gain[col] * p + magnitude_bias[col]; }
  FS_HD S norm(std::int64_t col) const { return norms == nullptr ? S(1) : norms[col]; }

  // a, and `opening` = max(pi, 0).
  FS_HD S forward(S p, S& opening, std::int64_t row, std::int64_t col, S* sum) const {
    const S pi = p + gate_bias[col], passing = magnitude(p, col), w = weight[row];
    const bool shut = pi <= S(0), off = shut || passing <= S(0);
    opening = shut ? S(0) : pi;
    sum[ForwardSums::active] = off ? S(0) : S(1);
    sum[ForwardSums::weighted] = off ? S(0) : w;
    sum[ForwardSums::penalty] = w * opening * norm(col);
    sum[ForwardSums::by_norm] = w * opening;
    sum[ForwardSums::below] = sum[ForwardSums::near] = S(0);
    return off ? S(0) : passing;
  }

  // The slopes by both become that by p.
  FS_HD S backward(S p, S slope, S opening_slope, const PenaltySlopes<S>& by, std::int64_t row,
                   std::int64_t col, S* sum) const {
    const bool open = p + gate_bias[col] > S(0);
    const S by_magnitude = open && magnitude(p, col) > S(0) ? slope : S(0);
    const S by_gate = open ? opening_slope + weight[row] * by.sparsity * norm(col) : S(0);
    const S delta = by_gate + by_magnitude * gain[col];
    sum[GateSums::gate] = by_gate;
    sum[GateSums::magnitude] = by_magnitude;
    sum[GateSums::gain] = by_magnitude * p * gain[col];
    sum[GateSums::delta] = delta;
    return delta;
  }
};

template <class S>
struct ForwardGate : SumsColumns<S, ForwardSums::count> {
  static constexpr bool epilogue = true;
  GateParameters<S> gate;
  View<S> code, opening;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S p, S* sum) const {
    code(row, col) = gate.forward(p, opening(row, col), row, col, sum);
    return p;
  }
};

template <class S>
struct BackwardGate : SumsColumns<S, GateSums::count> {
  static constexpr bool epilogue = true;
  GateParameters<S> gate;
  View<const S> p, opening_slope;
  PenaltySlopes<S> by;
  FS_HD void load() { by.load(); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S slope, S* sum) const {
    return gate.backward(p(row, col), slope, opening_slope(row, col), by, row, col, sum);
  }
};

// Where the gates open.
template <class S>
struct NegativeOf : EachElement<S> {
  const S* of;  // [cols]
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S*) const { return -of[col]; }
};

template <class S>
struct ExpOf : EachElement<S> {
  const S* of;  // [cols]
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S*) const { return exponential(of[col]); }
};

// The decoder's product becomes the gradient by it; sums the weighted squared error.
template <class S>
struct CodeError {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::row_sum;
  static constexpr int sums = 1;
  const S* bias;         // [cols]
  View<const S> extra;   // or no data
  View<const S> target;  // [rows x cols]
  const S* weight;       // [rows]
  const double* factor;
  S scale = 0;
  FS_HD void load() { scale = static_cast<S>(*factor); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S z, S* sum) const {
    S y = z + bias[col];
    if (extra.data != nullptr) y += extra(row, col);
    const S error = y - target(row, col);
    sum[0] = weight[row] * error * error;
    return scale * weight[row] * error;
  }
};

// What each latent's decoder row is pulled by for the norm that weighs its penalty; sums the parts of the penalty.
struct PenaltyPull : SumsColumns<double, 4> {
  const double* forward;  // ForwardSums, [count x cols]
  std::int64_t cols;
  View<const float> norms_f32;  // of one of the types, or of none
  View<const double> norms_f64;
  CodeConstants constants;
  const StepScalars* step;
  bool by_norm;
  enum { active, weighted, penalty, below };
  FS_HD double norm(std::int64_t col) const {
    if (norms_f32.data != nullptr) return static_cast<double>(norms_f32.data[col]);
    return norms_f64.data == nullptr ? 1.0 : norms_f64.data[col];
  }
  FS_HD double operator()(std::int64_t, std::int64_t col, double, double* sum) const {
    const double length = norm(col);
    const double rate =
        length > 0 ? step->inverse_total / length : 0.0;  // before there are sums to put aside
    const double below_bar = forward[ForwardSums::below * cols + col];
    double slope = constants.pre_act_weight * below_bar;
    if (by_norm)
      slope += constants.sparsity_weight * step->penalty_share * forward[ForwardSums::by_norm * cols + col];
    sum[active] = forward[ForwardSums::active * cols + col];
    sum[weighted] = forward[ForwardSums::weighted * cols + col];
    sum[penalty] = forward[ForwardSums::penalty * cols + col];
    sum[below] = below_bar * length;
    return rate * slope;
  }
};

// Straight through the window around it.
template <class S>
struct ThresholdGradient : SumsColumns<S, 1> {
  const double* forward;   // ForwardSums, [count x cols]
  const double* backward;  // BackwardSums, [count x cols]
  std::int64_t cols;
  const S* threshold;
  const S* norms;  // or null: 1
  const CodeSums* numbers;
  CodeConstants constants;
  const StepScalars* step;
  double bandwidth;
  bool counts_rows;  // the slope by a row's count is its own
  FS_HD S operator()(std::int64_t, std::int64_t col, S, S* sum) const {
    const double mean = step->inverse_total;
    double by_count = counts_rows || constants.counts_active ? 1 : 0;
    if (constants.target_l0 > 0)
      by_count = 2 * (numbers->weighted_active * mean / constants.target_l0 - 1) / constants.target_l0;
    const double* counted =
        counts_rows ? backward + BackwardSums::near_count * cols : forward + ForwardSums::near * cols;
    by_count *= constants.sparsity_weight * step->penalty_share * mean * counted[col];
    const double bar = static_cast<double>(threshold[col]);
    const double length = norms == nullptr ? 1.0 : static_cast<double>(norms[col]);
    const double near = bar * backward[BackwardSums::near_slope * cols + col] + by_count;
    const S g =
        static_cast<S>(constants.pre_act_weight * mean * length * backward[BackwardSums::below * cols + col] -
                       near / bandwidth);
    sum[0] = g * g;
    return g;
  }
};

template <class S>
struct ClampThreshold : EachElement<S> {
  const StepLog* log;
  FS_HD bool idle() const { return log->failed != 0; }
  FS_HD S operator()(std::int64_t, std::int64_t, S z, S*) const { return z < S(0) ? S(0) : z; }
};

}  // namespace fastsae
