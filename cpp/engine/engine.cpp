#include "engine/engine.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace fastsae {
namespace {

constexpr std::int64_t kInferenceRows = 1024;                  // rows of one block of inference
constexpr std::size_t kFullBatchBytes = std::size_t{1} << 30;  // scratch of a full-batch gradient

Tensor shaped(const Tensor& memory, std::int64_t rows, std::int64_t cols) {
  return {memory.data, rows, cols, cols, memory.dtype};
}

// The caller's memory as a tensor, where no conversion is needed.
bool usable_in_place(const HostRows& x, DType dtype) {
  return x.dtype == dtype && x.stride_bytes % static_cast<std::int64_t>(size_of(dtype)) == 0 &&
         x.stride_bytes >= x.cols * static_cast<std::int64_t>(size_of(dtype));
}

Tensor in_place(const HostRows& x, std::int64_t first, std::int64_t rows) {
  return {const_cast<std::byte*>(x.row(first)), rows, x.cols,
          x.stride_bytes / static_cast<std::int64_t>(size_of(x.dtype)), x.dtype};
}

bool finite_row(const HostRows& x, std::int64_t row) {
  const auto check = [&](auto s) {
    using S = decltype(s);
    const S* line = reinterpret_cast<const S*>(x.row(row));
    return std::all_of(line, line + x.cols, [](S value) { return std::isfinite(value); });
  };
  return x.dtype == DType::f32 ? check(float{}) : check(double{});
}

HostRows rows_from(const HostRows& x, std::int64_t first, std::int64_t rows) {
  HostRows part = x;
  part.data = x.row(first);
  part.rows = rows;
  return part;
}

}  // namespace

struct Engine::Training {
  std::int64_t rows = 0;
  Arena arena;
  Tensor* x = nullptr;
  Tensor* weight = nullptr;
};

// Three work tensors, a staged input, a staged output and row losses, for one call at a time.
struct Engine::Inference {
  std::int64_t rows = 0;
  Arena arena;
  Tensor work[3];
  Tensor input, output, losses;
};

Engine::Engine(const ModelSpec& model, const OptimizerSpec& optimizer, const std::string& device,
               std::int64_t full_batch_rows, Poll poll)
    : dtype_(model.dtype),
      n_features_(model.n_features),
      backend_(make_backend(device, std::move(poll))),
      model_(make_model(model, *backend_)),
      optimizer_(optimizer, *backend_),
      full_batch_rows_(full_batch_rows) {
  model_->declare(parameters_, gradients_, state_);
  optimizer_.declare(state_, parameters_, model_->parameters());
  for (Arena* arena : {&parameters_, &gradients_, &state_}) {
    arena->allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  }
  if (full_batch_rows_ <= 0) {
    Arena one_row;
    model_->declare_scratch(one_row, 64);
    const std::size_t row_bytes =
        one_row.bytes() / 64 + static_cast<std::size_t>(n_features_ + 1) * size_of(dtype_);
    full_batch_rows_ =
        std::max<std::int64_t>(256, static_cast<std::int64_t>(kFullBatchBytes / row_bytes) / 256 * 256);
  }
}

Engine::~Engine() = default;

void Engine::training(std::int64_t rows) {
  if (training_ && training_->rows >= rows) return;
  training_.reset();
  auto made = std::make_unique<Training>();
  made->rows = rows;
  made->x = &made->arena.declare("x", rows, n_features_, dtype_);
  made->weight = &made->arena.declare("weight", 1, rows, dtype_);
  model_->declare_scratch(made->arena, rows);
  made->arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  training_ = std::move(made);
}

Batch Engine::load(const Rows& rows, std::int64_t done, std::int64_t count) {
  const Training& scratch = *training_;
  Batch batch{scratch.x->slice_rows(0, count), shaped(*scratch.weight, 1, count)};
  const std::int64_t* order = rows.order == nullptr ? nullptr : rows.order + rows.first + done;
  const HostRows x = order == nullptr ? rows_from(rows.x, rows.first + done, count) : rows.x;
  if (order == nullptr && usable_in_place(x, dtype_))
    batch.x = in_place(x, 0, count);
  else
    backend_->gather(x, order, batch.x);

  if (rows.weights == nullptr) {
    backend_->fill(batch.weight, 1);
  } else {
    const std::int64_t offset = order == nullptr ? rows.first + done : 0;
    const HostRows column{rows.weights + offset, rows.x.rows - offset, 1, sizeof(double), DType::f64};
    backend_->gather(column, order, shaped(batch.weight, count, 1));
  }
  return batch;
}

Cost Engine::compute(const Rows& rows, double total, bool with_gradient) {
  const std::int64_t chunk = std::min(rows.count, full_batch_rows_);
  training(chunk);
  const bool one_chunk = chunk == rows.count;
  const auto for_each_chunk = [&](auto&& body) {
    for (std::int64_t done = 0; done < rows.count; done += chunk) {
      const std::int64_t count = std::min(chunk, rows.count - done);
      body(load(rows, done, count), done + count == rows.count);
    }
  };
  model_->begin(total, with_gradient, one_chunk);
  if (!one_chunk && model_->needs_means()) {
    for_each_chunk([&](const Batch& batch, bool) { model_->accumulate_means(batch); });
    model_->finish_means();
  }
  for_each_chunk([&](const Batch& batch, bool last) { model_->accumulate(batch, last); });
  const Cost cost = model_->cost();
  if (!std::isfinite(cost.loss()) || !std::isfinite(cost.gradient_norm)) explain(cost, rows);
  return cost;
}

double Engine::Rows::total_weight() const {
  if (weights == nullptr) return static_cast<double>(count);
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += weights[index(i)];
  return total;
}

Cost Engine::full_batch(const HostRows& x, const double* weights, bool with_gradient) {
  const std::unique_lock lock(model_mutex_);
  const Rows all{x, weights, nullptr, 0, x.rows};
  const double total = all.total_weight();
  FS_REQUIRE(total > 0, "sample_weight: expected a positive sum, got ", total);
  return compute(all, total, with_gradient);
}

Cost Engine::gradient(const HostRows& x, const double* weights) { return full_batch(x, weights, true); }

Cost Engine::evaluate(const HostRows& x, const double* weights) { return full_batch(x, weights, false); }

void Engine::step(const Rows& rows) {
  const std::unique_lock lock(model_mutex_);
  const double total = rows.total_weight();
  if (total <= 0) {  // rows of no weight teach nothing
    metrics_.rows += rows.count;
    return;
  }
  const Cost cost = compute(rows, total, true);
  optimizer_.apply(model_->parameters(), steps_ + 1);
  model_->commit();
  ++steps_;
  metrics_.sums.reconstruction += total * cost.reconstruction;
  metrics_.sums.penalty += total * cost.penalty;
  metrics_.sums.decay += total * cost.decay;
  metrics_.sums.gradient_norm += total * cost.gradient_norm;
  metrics_.weight += total;
  metrics_.steps += 1;
  metrics_.rows += rows.count;
}

void Engine::explain(const Cost& cost, const Rows& rows) const {
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const std::int64_t row = rows.index(i);
    if (!finite_row(rows.x, row)) throw ValueError(text("X: row ", row, " contains NaN or infinity"));
  }
  throw NonFiniteError(text("step ", steps_ + 1, ": the loss is ", cost.loss(), " and the gradient norm ",
                            cost.gradient_norm,
                            "; the parameters are those of the step before. Lower learning_rate or scale X"));
}

void Engine::run(const HostRows& x, const double* weights, const std::int64_t* order, std::int64_t count,
                 std::int64_t batch) {
  for (std::int64_t first = 0; first < count; first += batch) {
    step({x, weights, order, first, std::min(batch, count - first)});
    backend_->poll();
  }
}

template <class Body>
void Engine::infer(const HostRows& in, std::int64_t out_cols, const Body& body) const {
  const std::int64_t rows = std::min(kInferenceRows, in.rows);
  std::unique_ptr<Inference> lease;
  {
    std::lock_guard lock(inference_mutex_);
    if (!inference_free_.empty()) {
      lease = std::move(inference_free_.back());
      inference_free_.pop_back();
    }
  }
  if (!lease || lease->rows < rows) {
    lease = std::make_unique<Inference>();
    lease->rows = rows;
    Tensor* declared[3];
    for (Tensor*& work : declared) work = &lease->arena.declare("work", rows, model_->widest(), dtype_);
    const Tensor& input = lease->arena.declare("input", rows, std::max(n_features_, code_width()), dtype_);
    const Tensor& output = lease->arena.declare("output", rows, model_->widest(), dtype_);
    const Tensor& losses = lease->arena.declare("losses", rows, 1, DType::f64);
    lease->arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
    for (int i = 0; i < 3; ++i) lease->work[i] = *declared[i];
    lease->input = input;
    lease->output = output;
    lease->losses = losses;
  }
  for (std::int64_t first = 0; first < in.rows; first += kInferenceRows) {
    const std::int64_t count = std::min(kInferenceRows, in.rows - first);
    const std::shared_lock lock(model_mutex_);
    Tensor block = shaped(lease->input, count, in.cols);
    if (usable_in_place(in, dtype_))
      block = in_place(in, first, count);
    else
      backend_->gather(rows_from(in, first, count), nullptr, block);
    body(block, first, shaped(lease->output, count, out_cols), *lease);
    backend_->poll();
  }
  std::lock_guard lock(inference_mutex_);
  inference_free_.push_back(std::move(lease));
}

void Engine::encode(const HostRows& x, void* code) const {
  const std::int64_t cols = code_width();
  infer(x, cols, [&](const Tensor& in, std::int64_t first, const Tensor&, Inference& scratch) {
    const Tensor out = Tensor{code, x.rows, cols, cols, dtype_}.slice_rows(first, in.rows);
    model_->encode(in, out, scratch.work);
  });
}

void Engine::decode(const HostRows& code, void* x) const {
  infer(code, n_features_, [&](const Tensor& in, std::int64_t first, const Tensor&, Inference& scratch) {
    const Tensor out = Tensor{x, code.rows, n_features_, n_features_, dtype_}.slice_rows(first, in.rows);
    model_->decode(in, out, scratch.work);
  });
}

void Engine::reconstruct(const HostRows& x, void* output) const {
  const std::int64_t cols = code_width();
  infer(x, cols, [&](const Tensor& in, std::int64_t first, const Tensor& code, Inference& scratch) {
    const Tensor out = Tensor{output, x.rows, n_features_, n_features_, dtype_}.slice_rows(first, in.rows);
    model_->encode(in, code, scratch.work);
    model_->decode(code, out, scratch.work);
  });
}

void Engine::score(const HostRows& x, double* losses) const {
  infer(x, n_features_, [&](const Tensor& in, std::int64_t first, const Tensor& output, Inference& scratch) {
    const Tensor rows = shaped(scratch.losses, in.rows, 1);
    model_->score(in, output, rows, scratch.work);
    backend_->read(rows, losses + first);
    for (std::int64_t i = first; i < first + in.rows; ++i) losses[i] *= model_->loss_factor();
  });
}

std::vector<std::string> Engine::names() const {
  std::vector<std::string> names;
  for (const Arena* arena : {&parameters_, &gradients_, &state_}) {
    for (const Arena::Named& named : arena->tensors()) names.push_back(named.name);
  }
  return names;
}

const Tensor& Engine::tensor(const std::string& name) const {
  for (const Arena* arena : {&parameters_, &gradients_, &state_}) {
    if (const Tensor* found = arena->find(name)) return *found;
  }
  throw ValueError(text("name: no tensor is called '", name, "'"));
}

void Engine::read(const std::string& name, void* to) const {
  const std::shared_lock lock(model_mutex_);
  backend_->read(tensor(name), to);
}

void Engine::write(const std::string& name, const void* from) {
  const std::unique_lock lock(model_mutex_);
  backend_->write(tensor(name), from);
}

std::int64_t Engine::steps() const {
  const std::shared_lock lock(model_mutex_);
  return steps_;
}

void Engine::set_steps(std::int64_t steps) {
  const std::unique_lock lock(model_mutex_);
  steps_ = steps;
}

Metrics Engine::metrics() const {
  const std::shared_lock lock(model_mutex_);
  return metrics_;
}

void Engine::reset_metrics() {
  const std::unique_lock lock(model_mutex_);
  metrics_ = {};
}

}  // namespace fastsae
