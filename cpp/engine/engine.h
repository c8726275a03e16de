// An engine owns a backend, a model, its memory and its optimiser.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/optimizer.h"
#include "models/model.h"

namespace fastsae {

// The parts of J; the gradient norm is 0 where no gradient was asked for.
struct Cost : StepCost {
  double loss() const { return reconstruction + penalty + decay; }
};

// Sums of the costs of steps, each weighted by its batch's total weight.
struct Metrics {
  Cost sums;
  double weight = 0;
  std::int64_t steps = 0;
  std::int64_t rows = 0;
};

class Engine {
 public:
  // `full_batch_rows`: rows of a full batch that are held in scratch at once; 0 chooses by a fixed cap in
  // bytes.
  Engine(const ModelSpec& model, const OptimizerSpec& optimizer, std::unique_ptr<Backend> backend,
         std::int64_t full_batch_rows);
  ~Engine();

  // J and its gradient, or J alone, over all rows at once. `weights` may be null.
  Cost gradient(const RowSource& x, const double* weights);
  Cost evaluate(const RowSource& x, const double* weights);
  // One optimiser step for each batch of rows order[0 .. count): the last, shorter one is kept. With a null
  // order the rows are taken as they are. A batch that is not finite changes nothing and raises.
  void run(const RowSource& x, const double* weights, const std::int64_t* order, std::int64_t count,
           std::int64_t batch);

  // Every call is safe from any thread. Inference runs side by side; a step has the model for itself.
  void encode(const RowSource& x, RowTarget code) const;
  void decode(const RowSource& code, RowTarget x) const;
  void reconstruct(const RowSource& x, RowTarget output) const;
  void score(const RowSource& x, double* losses) const;

  // Memory of the device for rows that are kept outside the engine.
  Memory allocate(std::size_t bytes) const;
  // Whether that much may be held there beside what training needs; nothing is held twice in host memory.
  bool has_room(std::size_t bytes) const;
  // Row i of `to`, on the device, becomes row order[i] of x (row i without an order).
  void take(const RowSource& x, const std::int64_t* order, const Tensor& to) const;
  // The first row that holds NaN or a number outside [low, high], or -1.
  std::int64_t first_row_outside(const RowSource& x, double low, double high) const;
  const Backend& backend() const { return *backend_; }
  // Calls body with the device's queue of work while nothing else adds to it, and waits until that is done.
  void with_stream(const std::function<void(void*)>& body) const;

  // Parameters (W1, b1, ...), gradients (gradient.W1, ...), optimiser and model state.
  std::vector<std::string> names() const;
  const Tensor& tensor(const std::string& name) const;
  // In the tensor's own type, dense.
  void read(const std::string& name, void* to) const;
  void write(const std::string& name, const void* from);

  std::int64_t steps() const;
  void set_steps(std::int64_t steps);
  Metrics metrics() const;
  void reset_metrics();
  double learning_rate() const;
  void set_learning_rate(double rate);
  DType dtype() const { return dtype_; }
  std::int64_t n_features() const { return n_features_; }
  std::int64_t code_width() const { return model_->code_width(); }

 private:
  struct Training;  // scratch of training, for a number of rows
  struct Inference;
  struct Staged {  // rows of many small steps
    std::int64_t rows = 0, steps = 0;
    Arena arena;
    Batch batch;
    Tensor scalars;  // [steps] of StepScalars
  };

  // Rows order[first .. first + count) of x, or x's own rows without an order.
  struct Rows {
    RowSource x;
    const double* weights;  // of all rows of x, or null
    const std::int64_t* order;
    std::int64_t first, count;
    RowSource column;  // of weights: like x, or on the device in the order they are taken in
    std::int64_t index(std::int64_t i) const { return order == nullptr ? first + i : order[first + i]; }
    double total_weight() const;
  };

  void reserve(std::int64_t rows);
  // Rows [done, done + count) of these, in that memory if `fixed`, else perhaps where they are: a recorded step holds
  // addresses.
  Batch load(const Rows& rows, std::int64_t done, std::int64_t count, const Batch& memory, bool fixed);
  // The weights of the rows of one call, on a device.
  struct HeldWeights {
    Memory memory;
    std::int64_t room = 0;
  };
  // The weights as they are loaded from: a device gets them once for a whole run.
  RowSource weight_column(const RowSource& x, const double* weights, const std::int64_t* order,
                          std::int64_t count, HeldWeights& held);
  // Sums J and, on demand, its gradient over the rows.
  void compute(const Rows& rows, bool with_gradient);
  Cost full_batch(const RowSource& x, const double* weights, bool with_gradient);
  void begin_step(const Rows& rows);
  // Begins as many steps of `batch` of these rows as the device takes at once; returns their rows, or 0.
  std::int64_t begin_small_steps(const Rows& rows, std::int64_t batch);
  void reserve_staged(std::int64_t rows, std::int64_t steps);
  // Waits for the steps that were begun and counts them; raises if one was not finite.
  void settle();
  StepScalars scalars_of(double total, double rho_hat_decay, std::int64_t step) const;
  // Decay of the moving averages in a step of training; the first one starts them.
  double rho_hat_decay(std::int64_t step) const { return step > 1 ? rho_hat_decay_ : 0; }
  // Says why a cost is not finite, and raises.
  [[noreturn]] void explain(const Cost& cost, const Rows& rows);
  std::unique_ptr<Inference> lease(std::int64_t rows) const;
  Tensor input_block(const RowSource& rows, const Inference& scratch) const;
  template <class Body>
  void infer(const RowSource& in, const Tensor& result, bool on_device, const Body& body) const;

  const DType dtype_;
  const double rho_hat_decay_;  // 0 where no average moves
  const std::int64_t n_features_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  Optimizer optimizer_;
  Arena parameters_, gradients_, state_;
  std::int64_t full_batch_rows_;
  std::unique_ptr<Training> training_;
  std::optional<SmallModel> small_;
  std::unique_ptr<Staged> staged_;
  std::int64_t reservations_ = 0;
  HeldWeights weights_;  // taken by a call and put back: while a run lets others in, it keeps its own
  mutable std::shared_mutex model_mutex_;  // shared by inference, held alone by whatever writes
  mutable std::mutex inference_mutex_;     // of the free list
  mutable std::vector<std::unique_ptr<Inference>> inference_free_;
  // What is in control_, in its order.
  enum class Control : std::size_t { kScalars, kTotals, kCost, kLog };
  const Tensor& control(Control which) const {
    return control_.tensors()[static_cast<std::size_t>(which)].tensor;
  }
  Arena control_;
  StepMemory memory_;
  std::vector<Rows> in_flight_;  // steps begun and not yet settled
  std::int64_t steps_ = 0;
  Metrics metrics_;
};

}  // namespace fastsae
