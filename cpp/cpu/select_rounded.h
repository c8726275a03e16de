// The same selection in less time, where products of bfloat16 cost half: which elements of a row may be among its
// best is found from scores of rounded factors and their bounds (score_bounds.h), and only these few are computed in
// float32. No bit of the result says which way it was made.
#pragma once

#include <atomic>

#include "backend/backend.h"
#include "cpu/panels.h"
#include "cpu/scratch.h"
#include "cpu/select_tiles.h"

namespace fastsae::cpu {

// Whether rounding is worth another try: not for a while after it left too much open. Calls may run side by side.
class RoundingTrials {
 public:
  // Where k elements of a row are wanted, more or less.
  bool wanted(const Tensor& x, const Tensor& weight, std::int64_t k);
  // How many elements of how many were computed after all.
  void report(std::int64_t computed, std::int64_t all);

 private:
  std::atomic<int> pause_ = 0;  // selections before the next one
};

// Single elements of (x weight' + bias) scale with the bits that they have by the kernels of cpu/panels.h.
template <class Of>
void score_elements(const Of& of, std::int64_t row, const std::int32_t* columns, std::int64_t count,
                    float* to) {
  panel_elements(of.x.template as<float>() + row * of.x.stride, of.x.cols, of.weight.template as<float>(),
                 of.weight.stride, columns, count, to);
  for (std::int64_t i = 0; i < count; ++i) {
    const float bias = of.bias.exists() ? of.bias.template as<float>()[columns[i]] : 0.0f;
    const float scale = of.scale.exists() ? of.scale.template as<float>()[columns[i]] : 1.0f;
    to[i] = (to[i] + bias) * scale;
  }
}

// By those kernels, with which rows that stay open are computed in full.
void encode_select_rounded(const Selection& selection, RoundingTrials& trials, Scratch& scratch,
                           const Parallel& parallel);

}  // namespace fastsae::cpu
