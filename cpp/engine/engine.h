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

// Rows to learn from, or to compute J of.
struct Examples {
  RowSource x;
  const double* weights = nullptr;  // of its rows
  RowSource target = {};            // what the output should be; without data: x
  const std::int64_t* numbers =
      nullptr;  // of its rows in the data set, which noise is drawn by; null: 0, 1, ...
};

class Engine {
 public:
  // `full_batch_rows`: rows of a full batch that are held in scratch at once; 0 chooses by a fixed cap in
  // bytes.
  Engine(const ModelSpec& model, const OptimizerSpec& optimizer, std::unique_ptr<Backend> backend,
         std::int64_t full_batch_rows);
  ~Engine();

  // J and its gradient, or J alone, over all rows at once.
  Cost gradient(const Examples& examples);
  Cost evaluate(const Examples& examples);
  // One optimiser step for each batch of rows order[0 .. count): the last, shorter one is kept. With a null
  // order the rows are taken as they are. A batch that is not finite changes nothing and raises.
  void run(const Examples& examples, const std::int64_t* order, std::int64_t count, std::int64_t batch);

  // Every call is safe from any thread. Inference runs side by side; a step has the model for itself.
  void encode(const RowSource& x, RowTarget code) const;
  void decode(const RowSource& code, RowTarget x) const;
  void reconstruct(const RowSource& x, RowTarget output) const;
  // The loss of each row against its target: of x, or of what a code gives.
  void score(const RowSource& x, const RowSource& target, double* losses) const;
  void score_code(const RowSource& code, const RowSource& target, double* losses) const;
  // The elements of the code that are not 0, row after row.
  struct SparseRows {
    std::vector<std::int64_t> starts;  // of rows, and the end
    std::vector<std::int32_t> columns;
    std::vector<std::byte> values;  // of dtype()
  };
  SparseRows encode_sparse(const RowSource& x) const;
  // Means and log-variances of a code that has a distribution.
  void encode_distribution(const RowSource& x, RowTarget moments) const;

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
  Tensor tensor(const std::string& name) const;
  // In the tensor's own type, dense. Writing a parameter starts its average anew.
  void read(const std::string& name, void* to) const;
  void write(const std::string& name, const void* from);

  // Whether parameters are the averages of what an averaging optimiser has learned; steps need them as they were.
  bool averaged() const;
  void set_averaged(bool averaged);

  std::int64_t steps() const;
  void set_steps(std::int64_t steps);
  Metrics metrics() const;
  void reset_metrics();
  double learning_rate() const;
  void set_learning_rate(double rate);
  // What the cosine schedule ends with.
  std::int64_t total_steps() const;
  void set_total_steps(std::int64_t steps);
  // Noise depends on these two and on the number and column of what it is added to.
  std::int64_t noise_seed() const;
  void set_noise_seed(std::int64_t seed);
  std::int64_t epoch() const;
  void set_epoch(std::int64_t epoch);
  DType dtype() const { return dtype_; }
  std::int64_t n_features() const { return n_features_; }
  std::int64_t n_outputs() const { return n_outputs_; }
  bool has_distribution() const { return model_->has_distribution(); }
  std::int64_t code_width() const { return model_->code_width(); }

 private:
  struct Training;  // scratch of training, for a number of rows
  struct Inference;
  class Elements;
  struct Staged {  // rows of many small steps
    std::int64_t rows = 0, steps = 0;
    Arena arena;
    Batch batch;
    Tensor scalars;  // [steps] of StepScalars
  };

  // Rows order[first .. first + count) of the examples, or their own rows without an order.
  struct Rows {
    Examples of;
    const std::int64_t* order;
    std::int64_t first, count;
    RowSource column;   // of weights: like x, or on the device in the order they are taken in
    RowSource numbers;  // in the order they are taken in; no data where the model draws no noise
    std::int64_t index(std::int64_t i) const { return order == nullptr ? first + i : order[first + i]; }
    double total_weight() const;
  };

  void reserve_matrices();
  void check_shown(const std::string& name) const;
  // Those that have names: training parameters only while averages are in their place.
  std::vector<const Arena*> arenas() const;
  const Tensor& find(const std::string& name) const;
  // Scratch for so many rows, with targets of their own or without.
  void reserve(std::int64_t rows, bool targets);
  void reserve_for(const Rows& rows);
  // Rows [done, done + count) of these, in that memory if `fixed`, else perhaps where they are: a recorded step holds
  // addresses.
  Batch load(const Rows& rows, std::int64_t done, std::int64_t count, const Batch& memory, bool fixed);
  void load_rows(const RowSource& from, const std::int64_t* order, std::int64_t first, Tensor& to,
                 bool fixed);
  // A number for each row of one call.
  struct Column {
    std::vector<double> host;
    Memory memory;
    std::int64_t room = 0;
  };
  struct Columns {
    Column weights, numbers;
  };
  // As it is loaded from: a device gets it once for a whole run.
  RowSource on_device(const RowSource& column, const std::int64_t* order, std::int64_t count, Column& held);
  Rows all_rows(const Examples& examples, const std::int64_t* order, std::int64_t count, Columns& held);
  // Whether the model may read rows where the caller has them.
  bool takes_in_place(const RowSource& x) const;
  // Sums J and, on demand, its gradient over the rows.
  void compute(const Rows& rows, bool with_gradient);
  Cost full_batch(const Examples& examples, bool with_gradient);
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
  // With inputs and results of at most so many columns.
  std::unique_ptr<Inference> lease(std::int64_t rows, std::int64_t cols) const;
  Tensor input_block(const RowSource& rows, const Tensor& staging) const;
  template <class Body>
  void infer(const RowSource& in, const Tensor& result, bool on_device, const Body& body) const;
  template <class Score>
  void score_rows(const RowSource& in, const RowSource& target, double* losses, const Score& score) const;

  const DType dtype_;
  const double rho_hat_decay_;  // 0 where no average moves
  const std::int64_t n_features_, n_outputs_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  Optimizer optimizer_;
  Arena parameters_, gradients_, state_;
  Arena matrices_;               // gradients that not every step needs: without memory until one does
  bool matrices_shown_ = false;  // whether they are those of the last call of gradient()
  std::optional<Arena> training_parameters_;  // while their averages are in their place
  std::int64_t full_batch_rows_;
  std::unique_ptr<Training> training_;
  std::optional<SmallModel> small_;
  std::unique_ptr<Staged> staged_;
  const void* ones_ = nullptr;  // the column of row weights that is known to be all 1
  std::int64_t reservations_ = 0;
  Columns columns_;  // taken by a call and put back: while a run lets others in, it keeps its own
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
  std::vector<Rows> in_flight_,
      settling_;  // steps begun and not yet settled; those whose outcome is looked at
  std::int64_t steps_ = 0, noise_seed_ = 0, epoch_ = 0;
  Metrics metrics_;
};

}  // namespace fastsae
