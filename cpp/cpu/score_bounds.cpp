#include "cpu/score_bounds.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "cpu/levels.h"
#include "cpu/vectors.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kLines = 64;  // of a task
// More than denormals, of factors and of products, can be lost; and than squares of what is not denormal.
constexpr float kLost = 0x1p-40f, kLostOfSquares = 0x1p-50f;
// A product of norms below the first, and biases below the second, are far from an overflow.
constexpr float kLongest = 0x1p62f, kLargestBias = 0x1p126f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Of each line its norm and that of what rounding takes from it.
struct NormLines {
  const Tensor& lines;
  float *norm, *off;

  [[gnu::always_inline]] static float cut_off(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    return value - std::bit_cast<float>((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u);
  }

  [[gnu::always_inline]] inline void operator()(Range range) const {
    for (std::int64_t i = range.begin; i < range.end; ++i) {
      const float* line = lines.as<float>() + i * lines.stride;
      float squares[kVectorLanes] = {}, off_squares[kVectorLanes] = {};
      std::int64_t at = 0;
      for (; at + kVectorLanes <= lines.cols; at += kVectorLanes) {
#pragma GCC ivdep
        for (std::int64_t lane = 0; lane < kVectorLanes; ++lane) {
          const float value = line[at + lane], cut = cut_off(value);
          squares[lane] += value * value;
          off_squares[lane] += cut * cut;
        }
      }
      for (std::int64_t lane = 0; at < lines.cols; ++at, ++lane) {
        const float cut = cut_off(line[at]);
        squares[lane] += line[at] * line[at];
        off_squares[lane] += cut * cut;
      }
      const float rounded_sums = 1 + static_cast<float>(lines.cols + 8) * 0x1p-23f;
      norm[i] = std::sqrt(sum_of(squares)) * rounded_sums;
      off[i] = std::sqrt(sum_of(off_squares)) * rounded_sums;
    }
  }
};

template <class Work>
void for_all(std::int64_t count, const Parallel& parallel, const Work& work) {
  const Even parts = Even::at_most(count, kLines);
  parallel(parts.parts, [&](std::int64_t part) { work(parts[part]); });
}

}  // namespace

ScoreBounds::ScoreBounds(const Tensor& x, const Tensor& weight, const Tensor& bias, Scratch& scratch,
                         const Parallel& parallel)
    : memory_(scratch, doubles_for<float>(2 * (x.rows + weight.rows))),
      reach_(aligned<float>(memory_.data())),
      margin_(reach_ + x.rows) {
  float *const x_off = margin_ + weight.rows, *const norm = x_off + x.rows;
  for_all(x.rows, parallel, [&](Range rows) { run_at_level(NormLines{x, reach_, x_off}, rows); });
  float most_off = 0;  // of a row, as a share of its norm
  for (std::int64_t row = 0; row < x.rows; ++row) {
    reach_[row] = reach_[row] < kLongest ? reach_[row] + kLost : kInfinity;
    if (reach_[row] == kInfinity) continue;
    most_off = std::max(most_off, (x_off[row] + kLostOfSquares) / reach_[row]);
  }
  const float of_x = most_off + kLost, of_sums = static_cast<float>(2 * x.cols + 512) * 0x1p-24f;
  for_all(weight.rows, parallel, [&](Range latents) {
    run_at_level(NormLines{weight, norm, margin_}, latents);
    for (std::int64_t i = latents.begin; i < latents.end; ++i) {
      const float size = bias.exists() ? std::abs(bias.as<float>()[i]) : 0.0f;
      const bool bounded = norm[i] < kLongest && size < kLargestBias;
      margin_[i] = !bounded
                       ? kInfinity
                       : (margin_[i] + (of_x + of_sums) * (norm[i] + margin_[i]) + kLost) * (1 + 0x1p-18f);
    }
  });
}

}  // namespace fastsae::cpu
