// What changes from one step to the next, in device memory: a step that was recorded once can be replayed, and no
// step waits for the host.
#pragma once

namespace fastsae {

// Written by the host before a step.
struct StepScalars {
  double inverse_total;  // 1 / total weight of the batch
  double rho_hat_decay;  // of the moving average; 0: take the batch mean
  double learning_rate;
  double adam_rate;          // learning rate / (1 - beta1^t)
  double root_correction;    // 1 / sqrt(1 - beta2^t)
  double average_share;      // of this step in the average of all; 1 in the first
  double total;              // total weight of the batch
  double seed;               // of the noise
  double epoch;              // noise is fresh in each
  double step;               // its number, from 1
  double max_gradient_norm;  // a longer gradient is scaled down to it
  double penalty_share;      // of a sparse code's penalty, which may warm up
};

// Sums over a step's tensors, before they are scaled.
struct StepTotals {
  double loss, element_penalty, kl, twice_decay, squared_gradient;
};

// The parts of J, as of the last batch.
struct StepCost {
  double reconstruction = 0, penalty = 0, decay = 0, gradient_norm = 0;
};

// What the steps since the last reset left behind. Once one has failed, updates do nothing.
struct StepLog {
  double failed;          // 0 or 1
  double steps;           // that were good
  double weight;          // of their rows
  StepCost sums;          // each step counts with its weight
  double gradient_scale;  // of the last step: what its update multiplies the gradient by
};

}  // namespace fastsae
