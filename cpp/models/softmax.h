// The output of a classifier, beside the output kernels that see one element alone: products leave its logits.
#pragma once

#include "backend/backend.h"
#include "kernels/step.h"

namespace fastsae {

class Softmax {
 public:
  static constexpr const char* name = "softmax";

  void declare_scratch(Arena& scratch, std::int64_t rows);
  // Logits become deltas; the sums are those of OutputDelta.
  void delta(Backend& backend, Tensor logits, Tensor target, Tensor weight, const StepScalars* step,
             double factor, Sums sums) const;
  // Logits become probabilities. `log_sum` is memory for [rows x 1] doubles.
  static void probabilities(Backend& backend, Tensor logits, Tensor log_sum);
  // The same, and the loss of each row into doubles [rows x 1].
  static void losses(Backend& backend, Tensor logits, Tensor target, Tensor log_sum, Tensor losses);

 private:
  Tensor* log_sum_ = nullptr;  // [rows x 1] doubles
  Tensor* mass_ = nullptr;     // [rows x 1] doubles
};

}  // namespace fastsae
