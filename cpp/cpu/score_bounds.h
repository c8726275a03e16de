// How far the scores of factors rounded to bfloat16 may lie from those of our kernels in float32.
#pragma once

#include "core/tensor.h"
#include "cpu/scratch.h"
#include "cpu/select_tiles.h"

namespace fastsae::cpu {

// Of x weight' in float32: an element is at most `reach` of its row times `margin` of its column away from what
// cpu/bf16.h makes of the same factors, however either of them rounds its sums. A bound that is not finite says nothing:
// where it is finite no sum overflows on its way, not with the bias either.
//
// With ~ for rounded factors, |~x ~w - x w| <= |~x - x| |~w| + |x| |~w - w|, and n terms of a sum bring n roundings of
// 2^-24 |x| |w| at most. All of these norms are those of the numbers that there are: about 0.3 % of |x| |w| together.
class ScoreBounds {
 public:
  ScoreBounds(const Tensor& x, const Tensor& weight, const Tensor& bias, Scratch& scratch,
              const Parallel& parallel);
  const float* reach() const { return reach_; }    // [rows]
  const float* margin() const { return margin_; }  // [latents]

 private:
  Scratch::Lease memory_;
  float *reach_, *margin_;
};

}  // namespace fastsae::cpu
