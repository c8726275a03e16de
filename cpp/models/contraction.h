// The contractive penalty: what models/layered.cpp asks for at the places of a step where it enters.
//
//   lambda/W sum_i w_i |J(x_i)|^2 + gamma/W sum_i w_i |J(x_i) - J(x_i + e_i)|^2,   e_i ~ N(0, noise^2)
//
// J is the Jacobian of the code at the input that the encoder sees (Rifai et al., ICML and ECML 2011).
//
// One layer: J = diag(p) W with p = f'(z), so that with s_j = |W_j|^2, q = f' at the neighbour and
// e_j = lambda p_j^2 + gamma (p_j - q_j)^2 a row's penalty is sum_j e_j s_j, and no Jacobian is made:
//   delta_j += 2 w/W s_j (lambda p_j + gamma (p_j - q_j)) f''(z_j),  the neighbour's is -2 w/W s_j gamma (p_j - q_j) f''
//   dW      += 2 diag(sum_i w_i/W e_ij) W
//
// Several layers: an estimate, |J u|^2 with u ~ N(0, I) for each row, whose mean is |J|^2 as that of Hutchinson's |J' v|^2
// is; J u needs the tangents t_l = f'(z_l) * (W_l t_{l-1}) of the forward layers alone. With b_l the error of t_l and
// v_l = W_l t_{l-1}:
//   b_L = 2 lambda w/W t_L,   b_{l-1} = W_l' (f'(z_l) * b_l),   delta_l += f''(z_l) * v_l * b_l,
//   dW_l += (f'(z_l) * b_l)' t_{l-1}
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "models/model.h"

namespace fastsae {

struct Stage;

class Contraction {
 public:
  using Index = std::int64_t;  // of a layer of the encoder

  // A chunk of a batch; `stages` begin with the encoder.
  struct Pass {
    const std::vector<Stage>& stages;
    const Batch& batch;
    Tensor x;  // that the encoder sees
    const StepMemory& step;
    bool first;  // of the chunks whose sums are added up
  };

  virtual ~Contraction() = default;
  virtual bool draws_noise() const = 0;
  virtual void declare_scratch(Arena& scratch, std::int64_t rows) = 0;

  // After the forward pass; with `value_only` no other call follows for this chunk.
  virtual void forward(const Pass& pass, bool value_only) = 0;
  // When a layer's delta is made, before it goes further down: adds its own.
  virtual void add_delta(const Pass& pass, Index layer) = 0;
  // After that: starts the layer's weight gradient, or adds to it. Says whether it did.
  virtual bool add_weight_gradient(const Pass& pass, Index layer, bool accumulate) = 0;
  // The end of the weight gradient, where it is not the usual one.
  virtual std::optional<Kernel> finish_weights(const Pass& pass, double decay) const = 0;
  // The summed deltas of a layer, with the penalty's: its bias gradient.
  virtual Tensor delta_sums(Index layer) const = 0;
  virtual void add_cost(StepTotals* totals, std::vector<Total>& sums) const = 0;
};

// Null for a model without the penalty; ValueError for an encoder that cannot have it.
std::unique_ptr<Contraction> make_contraction(const ModelSpec& spec, Backend& backend);

}  // namespace fastsae
