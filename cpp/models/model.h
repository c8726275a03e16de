// What the engine trains: a model declares its tensors and computes by Backend calls.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "backend/small_model.h"
#include "kernels/step.h"

namespace fastsae {

// What one row is: a vector, or an image. Rows come in and go out with one channel after the other; between the layers
// of an image a pixel's channels lie side by side, so that each channel is a column.
struct Shape {
  std::int64_t channels = 1, height = 1, width = 1;
  std::int64_t positions() const { return height * width; }
  std::int64_t size() const { return channels * positions(); }
  bool has_order() const { return channels > 1 && positions() > 1; }
  friend bool operator==(const Shape&, const Shape&) = default;
};

// One layer of the list; defaults, meanings and shapes are made in python/fastsae/layers.py. Which fields a kind reads
// is said where it is made.
struct LayerSpec {
  std::string kind;
  std::int64_t number;  // names its parameters
  Shape in, out;
  Shape below;  // of the layer before, as its kernels see the input; `in` unless a reshape stands between
  std::string activation, penalty;
  double beta, rho;
  double weight_decay, weight_l1;
  bool per_position;                     // whether each position of a map is a unit of its own to the penalty
  std::int64_t kernel, stride, padding;  // of windows
  std::int64_t places_of;                // number of the max pool that an unpooling mirrors, or 0
  std::string winners;                   // winner-take-all: "", "spatial", "lifetime" or "both"
  double lifetime;                       // share of rows in which a unit may win
  double free_bits, warm_up;             // of a Gaussian code
  bool has_penalty() const { return penalty != "none" && beta > 0; }
  bool has_kl() const { return has_penalty() && penalty == "kl"; }
  // How many units the penalty sees, and the share of one element in its unit.
  std::int64_t units() const { return per_position ? out.size() : out.channels; }
  double share() const { return static_cast<double>(units()) / static_cast<double>(out.size()); }
};

// What is done to the input of a step; its target stays clean.
struct CorruptionSpec {
  std::string kind;  // "none", "masking", "gaussian" or "salt_and_pepper"
  double level, low, high;
  double emphasis, rest;  // weights of the loss on corrupted elements and on the others
};

// The penalty on the encoder's Jacobian.
struct ContractionSpec {
  double weight, hessian_weight, noise;
};

// A sparse code: one encoder, one decoder, and which latents a row may use. Meanings and defaults are in
// python/fastsae/sparse_code.py.
struct SparseCodeSpec {
  std::int64_t latents;
  std::string activation;  // topk, batch_topk, jump_relu, gated or relu
  bool skip, pre_bias;
  std::string decoder_norm;  // unit, rescale or free
  bool project_gradient;
  double k, k_start;
  std::int64_t k_warm_up;
  std::vector<std::int64_t> prefixes;
  std::vector<double> prefix_weights;
  std::string sparsity;  // none, l1, tanh, step, quadratic or quadratic_rows
  double sparsity_weight;
  bool sparsity_by_norm;
  std::int64_t sparsity_warm_up;
  double target_l0, tanh_scale, pre_act_weight, bandwidth;
  double gate_weight;
  bool gate_detached;
  std::int64_t aux_k;
  double aux_weight;
  bool aux_relu, aux_share;
  std::string aux_reduction;  // sum, mean, fvu or residual
  double dead_after;          // < 0: no latent counts as dead
  double threshold_decay;
};

struct ModelSpec {
  std::optional<SparseCodeSpec> sparse_code;  // then nothing below that is of layers is read
  std::int64_t n_features;
  std::int64_t n_outputs;
  std::vector<LayerSpec> layers;
  std::int64_t code_layer;  // layers from the input to the code
  CorruptionSpec corruption;
  ContractionSpec contraction;
  std::string loss, loss_reduction;
  bool tied;
  bool decoupled_decay;  // the optimiser decays; J does not
  bool moving_rho_hat;
  double rho_hat_decay;
  DType dtype;
};

// Rows on the device with their weights.
struct Batch {
  Tensor x;       // [rows x n_features]
  Tensor target;  // [rows x n_outputs]; x itself where nothing else was given
  Tensor weight;  // [1 x rows]
  Tensor
      numbers;  // [1 x rows] of f64: which row of the data set each one is; only where the model draws noise
  std::int64_t rows() const { return x.rows; }
};

// Where a step's scalars and outcome are, on the device.
struct StepMemory {
  StepScalars* scalars = nullptr;
  Tensor totals;  // StepTotals, as [1 x 5] doubles
  StepCost* cost = nullptr;
  StepLog* log = nullptr;
  StepTotals* as_totals() const { return static_cast<StepTotals*>(totals.data); }
};

struct Parameter {
  Tensor* value;
  Tensor* gradient;
  double decay;           // 0 for biases
  bool by_model = false;  // whether the model updates it itself
};

class Model {
 public:
  virtual ~Model() = default;

  // Once: parameters, gradients, and state that is saved. `matrices` are gradients that a step may do without.
  virtual void declare(Arena& parameters, Arena& gradients, Arena& matrices, Arena& state) = 0;
  // Whether a step makes the gradients of `matrices`; else write_matrices() does, after accumulate().
  virtual bool needs_matrices() const { return false; }
  virtual void write_matrices() {}
  // How the parameters that it updates itself are updated, in the order of parameters().
  virtual void take_updates(std::vector<MatrixUpdate>) {}
  // What changes from step to step, for step number `step`, which counts from 1.
  virtual void set_step(StepScalars&, std::int64_t) {}
  // For each size of batch: activations, deltas, sums.
  virtual void declare_scratch(Arena& scratch, std::int64_t rows) = 0;

  // J and its gradient are computed in chunks of rows that share the means of the whole batch:
  //   begin(); needs_means(): accumulate_means(chunk)...; finish_means(); accumulate(chunk, last)...; close().
  // With one chunk accumulate() does all of it in one forward pass. Nothing here reads or waits for the device.
  virtual void begin(const StepMemory& memory, bool with_gradient, bool one_chunk) = 0;
  virtual bool needs_means() const = 0;
  virtual void accumulate_means(const Batch& batch) = 0;
  virtual void finish_means() = 0;
  virtual void accumulate(const Batch& batch, bool last) = 0;
  // Sums up the parts of J; a step is also logged.
  virtual void close(bool logged) = 0;
  // After the optimiser: makes the moving averages of the last gradient permanent, and updates what it updates itself.
  virtual void commit() = 0;

  virtual const std::vector<Parameter>& parameters() const = 0;
  // The model as plain data, without the optimiser's updates, if it is of that kind.
  virtual std::optional<SmallModel> small(const StepMemory& memory) const = 0;
  virtual std::int64_t code_width() const = 0;

  // Sums since a reset that are the model's own.
  virtual void reset_metrics() {}

  // Whether a step needs Batch::numbers, whether rows must follow each other without gaps, and whether the rows of a
  // batch compete, so that J cannot be computed in chunks.
  virtual bool draws_noise() const = 0;
  virtual bool needs_dense_rows() const = 0;
  virtual bool ranks_rows() const = 0;

  // Inference, safe from many threads. `work` has three tensors of at least [rows x widest()].
  struct Work {
    Tensor rows[3];
    Tensor layer;   // at least layer_work(rows) elements
    Tensor losses;  // at least [rows x output_positions()] of f64
  };
  virtual void encode(Tensor x, Tensor code, const Work& work) const = 0;
  // The same code, row after row, in blocks that hold all that is not 0: lists, or written down. `room` has at least
  // [rows x widest()] elements.
  using CodeBlock = std::variant<Code, Tensor>;
  using TakeBlock = std::function<void(const CodeBlock&)>;
  virtual void encode_blocks(Tensor x, Tensor room, const Work& work, const TakeBlock& take) const {
    const Tensor code = shaped(room, x.rows, code_width());
    encode(x, code, work);
    take(code);
  }
  virtual void decode(Tensor code, Tensor output, const Work& work) const = 0;
  virtual void reconstruct(Tensor x, Tensor output, const Work& work) const = 0;
  // The parameters of the code's distribution, [rows x 2 code_width]: means and log-variances of a Gaussian code.
  virtual void encode_distribution(Tensor x, Tensor moments, const Work& work) const = 0;
  virtual bool has_distribution() const = 0;
  // The output, and each row's loss before loss_factor() into doubles [rows x 1]; from a code or from x.
  virtual void score(Tensor x, Tensor target, Tensor output, Tensor losses, const Work& work) const = 0;
  virtual void score_code(Tensor code, Tensor target, Tensor output, Tensor losses,
                          const Work& work) const = 0;
  virtual double loss_factor() const = 0;
  virtual std::int64_t widest() const = 0;
  virtual std::int64_t layer_work(std::int64_t rows) const = 0;
  virtual std::int64_t output_positions() const = 0;
};

std::unique_ptr<Model> make_layered(const ModelSpec& spec, Backend& backend);
std::unique_ptr<Model> make_sparse_code(const ModelSpec& spec, Backend& backend);
std::unique_ptr<Model> make_model(const ModelSpec& spec, Backend& backend);

// Names of the closed lists, for tests that walk them.
std::map<std::string, std::vector<std::string>> kernel_names();

}  // namespace fastsae
