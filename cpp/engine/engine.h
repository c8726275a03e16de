// An engine owns a backend, a model, its memory and its optimiser.
#pragma once

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/optimizer.h"
#include "models/model.h"

namespace fastsae {

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
  Engine(const ModelSpec& model, const OptimizerSpec& optimizer, const std::string& device,
         std::int64_t full_batch_rows, Poll poll);
  ~Engine();

  // J and its gradient, or J alone, over all rows at once. `weights` may be null.
  Cost gradient(const HostRows& x, const double* weights);
  Cost evaluate(const HostRows& x, const double* weights);
  // One optimiser step for each batch of rows order[0 .. count): the last, shorter one is kept. With a null
  // order the rows are taken as they are. A batch that is not finite changes nothing and raises.
  void run(const HostRows& x, const double* weights, const std::int64_t* order, std::int64_t count,
           std::int64_t batch);

  // Every call is safe from any thread. Inference runs side by side; a step has the model for itself.
  void encode(const HostRows& x, void* code) const;
  void decode(const HostRows& code, void* x) const;
  void reconstruct(const HostRows& x, void* output) const;
  void score(const HostRows& x, double* losses) const;

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
  Optimizer& optimizer() { return optimizer_; }
  DType dtype() const { return dtype_; }
  std::int64_t n_features() const { return n_features_; }
  std::int64_t code_width() const { return model_->code_width(); }

 private:
  struct Training;  // scratch of training, for a number of rows
  struct Inference;

  // Rows order[first .. first + count) of x, or x's own rows without an order.
  struct Rows {
    const HostRows& x;
    const double* weights;
    const std::int64_t* order;
    std::int64_t first, count;
    std::int64_t index(std::int64_t i) const { return order == nullptr ? first + i : order[first + i]; }
    double total_weight() const;
  };

  void training(std::int64_t rows);
  Batch load(const Rows& rows, std::int64_t done, std::int64_t count);
  Cost compute(const Rows& rows, double total, bool with_gradient);
  Cost full_batch(const HostRows& x, const double* weights, bool with_gradient);
  void step(const Rows& rows);
  // Says why a cost is not finite, and raises.
  [[noreturn]] void explain(const Cost& cost, const Rows& rows) const;
  template <class Body>
  void infer(const HostRows& in, std::int64_t out_cols, const Body& body) const;

  const DType dtype_;
  const std::int64_t n_features_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Model> model_;
  Optimizer optimizer_;
  Arena parameters_, gradients_, state_;
  std::int64_t full_batch_rows_;
  std::unique_ptr<Training> training_;
  mutable std::shared_mutex model_mutex_;  // shared by inference, held alone by whatever writes
  mutable std::mutex inference_mutex_;     // of the free list
  mutable std::vector<std::unique_ptr<Inference>> inference_free_;
  std::int64_t steps_ = 0;
  Metrics metrics_;
};

}  // namespace fastsae
