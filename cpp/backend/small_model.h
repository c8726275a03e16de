// A model with one hidden layer as plain data, for devices that take many steps of it at once where it is small: then
// launches, and not arithmetic, cost the time.
#pragma once

#include "core/tensor.h"
#include "kernels/kernel.h"
#include "kernels/step.h"

namespace fastsae {

struct SmallParameter {
  Tensor value, gradient;
  Kernel update;  // with its moments
};

// x_hat = g(f(x W1' + b1) W2' + b2). Kernels have their constants, and of what they point to only what outlives a step;
// the rest is where the device holds it.
struct SmallModel {
  SmallParameter parameters[4];  // W1 [hidden x features], b1, W2 [features x hidden], b2
  Kernel activate, hidden_delta, output_delta;
  Kernel kl_column;   // only where kl_beta is not 0
  Kernel decayed[2];  // of the gradients of W1 and W2
  Kernel close;
  double element_beta, kl_beta;  // of the penalty: one of them or none is not 0
  Tensor rho_hat;                // [1 x hidden], where it moves
  StepCost* cost;
  StepLog* log;

  DType dtype() const { return parameters[0].value.dtype; }
  std::int64_t hidden() const { return parameters[0].value.rows; }
  std::int64_t features() const { return parameters[0].value.cols; }
};

// Batches of `rows` rows each, one after the other.
struct SmallBatches {
  Tensor x;        // [steps * rows x features]
  Tensor weight;   // [1 x steps * rows]
  Tensor scalars;  // [steps] of StepScalars
  std::int64_t rows, steps;
};

}  // namespace fastsae
