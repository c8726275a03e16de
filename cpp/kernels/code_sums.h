// The numbers of one step of a sparse code, on the device.
#pragma once

namespace fastsae {

// w are the weights of the rows.
struct CodeSums {
  double variance;           // sum of w |y - mean y|^2
  double residual_variance;  // the same of the residuals
  double loss;               // sum of w sum over prefixes of weight |error|^2
  double last_loss;          // sum of w |error|^2 of the whole code
  double auxiliary_loss;     // sum of w |auxiliary output - residual|^2
  double gate_loss;          // sum of w |gate's output - y|^2
  double dead;               // latents
  double active;             // elements of the code
  double weighted_active;    // each with its row's weight
  double sparsity;           // sum of w times the sparsity penalty of the row
  double pre_act;            // the same of the pre-activation penalty
  double smallest;           // element that a batch selection kept
  double dense_tiles;        // tiles before it that did not
  // What a row's weight times an error is multiplied by to give its part of the gradient.
  double factor, auxiliary_factor, gate_factor;
};

// What the sums become part of J by.
struct CodeConstants {
  double divisor;            // of the reconstruction; 0: the variance
  double auxiliary_weight;   // times what a share of 1 has
  double auxiliary_divisor;  // 0: the variance; -1: that of the residuals
  double auxiliary_share;    // number of latents that make the share 1; 0: it is always 1
  double gate_weight;
  double sparsity_weight;  // before the warm-up
  double target_l0;        // of the quadratic penalty, else 0
  bool counts_active;      // whether the penalty is the number of active elements
  double pre_act_weight;
};

// Sums since the last reset.
struct CodeMonitor {
  double rows, active, squared_error, variance, auxiliary, sparsity;
};

}  // namespace fastsae
