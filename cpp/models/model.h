// What the engine trains: a model declares its tensors and computes by Backend calls.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/small_model.h"
#include "kernels/step.h"

namespace fastsae {

// One layer of the list; defaults and meanings are in python/fastsae/config.py.
struct LayerSpec {
  std::int64_t units;
  std::string activation, penalty;
  double beta, rho;
};

struct ModelSpec {
  std::int64_t n_features;
  std::vector<LayerSpec> layers;
  std::int64_t code_layer;  // layers from the input to the code
  std::string loss, loss_reduction;
  bool tied;
  double weight_decay;
  bool decoupled_decay;  // the optimiser decays; J does not
  bool moving_rho_hat;
  double rho_hat_decay;
  DType dtype;
};

// Rows on the device with their weights.
struct Batch {
  Tensor x;       // [rows x n_features]
  Tensor weight;  // [1 x rows]
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
  bool decays;
};

class Model {
 public:
  virtual ~Model() = default;

  // Once: parameters, gradients, and state that is saved.
  virtual void declare(Arena& parameters, Arena& gradients, Arena& state) = 0;
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
  // Makes the moving averages of the last gradient permanent.
  virtual void commit() = 0;

  virtual const std::vector<Parameter>& parameters() const = 0;
  // The model as plain data, without the optimiser's updates, if it is of that kind.
  virtual std::optional<SmallModel> small(const StepMemory& memory) const = 0;
  virtual std::int64_t code_width() const = 0;

  // Inference, safe from many threads. `work` points to three tensors of at least [rows x widest()].
  virtual void encode(Tensor x, Tensor code, Tensor* work) const = 0;
  virtual void decode(Tensor code, Tensor x, Tensor* work) const = 0;
  // The reconstruction, and each row's loss before loss_factor() into doubles [rows x 1].
  virtual void score(Tensor x, Tensor output, Tensor losses, Tensor* work) const = 0;
  virtual double loss_factor() const = 0;
  virtual std::int64_t widest() const = 0;
};

std::unique_ptr<Model> make_layered(const ModelSpec& spec, Backend& backend);
std::unique_ptr<Model> make_model(const ModelSpec& spec, Backend& backend);

// Names of the closed lists, for tests that walk them.
std::map<std::string, std::vector<std::string>> kernel_names();

}  // namespace fastsae
