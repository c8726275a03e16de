#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"

namespace fastsae {
namespace {

constexpr std::int64_t kInferenceRows = 1024;                  // rows of one block of inference
constexpr std::size_t kFullBatchBytes = std::size_t{1} << 30;  // scratch of a full-batch gradient

Tensor shaped(const Tensor& memory, std::int64_t rows, std::int64_t cols, DType dtype) {
  return {memory.data, rows, cols, cols, dtype, memory.shadow};
}

Tensor shaped(const Tensor& memory, std::int64_t rows, std::int64_t cols) {
  return shaped(memory, rows, cols, memory.dtype);
}

// The caller's memory as a tensor, where no conversion is needed.
bool usable_in_place(const Backend& backend, const RowSource& x, DType dtype) {
  return backend.reads_host_memory() && x.dtype == dtype &&
         x.stride_bytes % static_cast<std::int64_t>(size_of(dtype)) == 0 &&
         x.stride_bytes >= x.cols * static_cast<std::int64_t>(size_of(dtype));
}

Tensor in_place(const RowSource& x, std::int64_t first, std::int64_t rows) {
  return {const_cast<std::byte*>(x.row(first)), rows, x.cols,
          x.stride_bytes / static_cast<std::int64_t>(size_of(x.dtype)), x.dtype};
}

bool finite_row(const RowSource& x, std::int64_t row) {
  const auto check = [&](auto s) {
    using S = decltype(s);
    const S* line = reinterpret_cast<const S*>(x.row(row));
    return std::all_of(line, line + x.cols, [](S value) { return std::isfinite(value); });
  };
  return x.dtype == DType::f32 ? check(float{}) : check(double{});
}

RowSource rows_from(const RowSource& x, std::int64_t first, std::int64_t rows) {
  RowSource part = x;
  part.data = x.row(first);
  part.rows = rows;
  return part;
}

}  // namespace

struct Engine::Training {
  std::int64_t rows = 0;
  std::int64_t number = 0;  // of this scratch among all there were
  Arena arena;
  Tensor* x = nullptr;
  Tensor* weight = nullptr;
  Batch batch() const { return {*x, *weight}; }
};

// Three work tensors, a code, a staged input and a staged output, for one call at a time.
struct Engine::Inference {
  std::int64_t rows = 0;
  Arena arena;
  Tensor work[3];
  Tensor code, input, output;
};

Engine::Engine(const ModelSpec& model, const OptimizerSpec& optimizer, std::unique_ptr<Backend> backend,
               std::int64_t full_batch_rows)
    : dtype_(model.dtype),
      rho_hat_decay_(model.moving_rho_hat ? model.rho_hat_decay : 0),
      n_features_(model.n_features),
      backend_(std::move(backend)),
      model_(make_model(model, *backend_)),
      optimizer_(optimizer, *backend_),
      full_batch_rows_(full_batch_rows) {
  model_->declare(parameters_, gradients_, state_);
  optimizer_.declare(state_, parameters_, model_->parameters());
  const auto doubles = [this](const char* name, std::size_t bytes) -> Tensor& {
    return control_.declare(name, 1, static_cast<std::int64_t>(bytes / sizeof(double)), DType::f64);
  };
  const Tensor& scalars = doubles("scalars", sizeof(StepScalars));
  const Tensor& totals = doubles("totals", sizeof(StepTotals));
  const Tensor& cost = doubles("cost", sizeof(StepCost));
  const Tensor& log = doubles("log", sizeof(StepLog));
  for (Arena* arena : {&parameters_, &gradients_, &state_, &control_}) {
    arena->allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  }
  memory_ = {scalars.as<StepScalars>(), totals, cost.as<StepCost>(), log.as<StepLog>()};
  small_ = model_->small(memory_);
  for (std::size_t i = 0; small_ && i < model_->parameters().size(); ++i) {
    small_->parameters[i].update = optimizer_.update(model_->parameters()[i], i, memory_);
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

void Engine::reserve(std::int64_t rows) {
  if (training_ && training_->rows >= rows) return;
  training_.reset();
  auto made = std::make_unique<Training>();
  made->rows = rows;
  made->number = ++reservations_;
  made->x = &made->arena.declare("x", rows, n_features_, dtype_, backend_->wants_shadows());
  made->weight = &made->arena.declare("weight", 1, rows, dtype_);
  model_->declare_scratch(made->arena, rows);
  made->arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  training_ = std::move(made);
}

Batch Engine::load(const Rows& rows, std::int64_t done, std::int64_t count, const Batch& memory) {
  Batch batch{memory.x.slice_rows(0, count), shaped(memory.weight, 1, count)};
  const std::int64_t* order = rows.order == nullptr ? nullptr : rows.order + rows.first + done;
  const RowSource x = order == nullptr ? rows_from(rows.x, rows.first + done, count) : rows.x;
  if (order == nullptr && usable_in_place(*backend_, x, dtype_))
    batch.x = in_place(x, 0, count);
  else
    backend_->gather(x, order, batch.x);

  if (rows.weights == nullptr) {
    backend_->fill(batch.weight, 1);
  } else {
    const std::int64_t offset = order == nullptr ? rows.first + done : 0;
    const RowSource column{rows.weights + offset, rows.x.rows - offset, 1, sizeof(double), DType::f64};
    backend_->gather(column, order, shaped(batch.weight, count, 1));
  }
  return batch;
}

StepScalars Engine::scalars_of(double total, double rho_hat_decay, std::int64_t step) const {
  StepScalars scalars{};
  scalars.total = total;
  scalars.inverse_total = 1 / total;
  scalars.rho_hat_decay = rho_hat_decay;
  optimizer_.set_scalars(scalars, step);
  return scalars;
}

void Engine::compute(const Rows& rows, bool with_gradient) {
  const std::int64_t chunk = std::min(rows.count, full_batch_rows_);
  const bool one_chunk = chunk == rows.count;
  const auto for_each_chunk = [&](auto&& body) {
    for (std::int64_t done = 0; done < rows.count; done += chunk) {
      const std::int64_t count = std::min(chunk, rows.count - done);
      body(load(rows, done, count, training_->batch()), done + count == rows.count);
      backend_->poll();
    }
  };
  model_->begin(memory_, with_gradient, one_chunk);
  if (!one_chunk && model_->needs_means()) {
    for_each_chunk([&](const Batch& batch, bool) { model_->accumulate_means(batch); });
    model_->finish_means();
  }
  for_each_chunk([&](const Batch& batch, bool last) { model_->accumulate(batch, last); });
}

double Engine::Rows::total_weight() const {
  if (weights == nullptr) return static_cast<double>(count);
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += weights[index(i)];
  return total;
}

Cost Engine::full_batch(const RowSource& x, const double* weights, bool with_gradient) {
  const std::unique_lock lock(model_mutex_);
  const Rows all{x, weights, nullptr, 0, x.rows};
  const double total = all.total_weight();
  FS_REQUIRE(total > 0, "sample_weight: expected a positive sum, got ", total);
  reserve(std::min(x.rows, full_batch_rows_));
  // An evaluation takes the mean of the rows it is given; a gradient is that of the next step.
  const StepScalars scalars = scalars_of(total, with_gradient ? rho_hat_decay(steps_ + 1) : 0, steps_ + 1);
  backend_->write(control(Control::kScalars), &scalars);
  compute(all, with_gradient);
  model_->close(false);
  Cost cost;
  backend_->read(control(Control::kCost), static_cast<StepCost*>(&cost));
  if (!std::isfinite(cost.loss()) || !std::isfinite(cost.gradient_norm)) explain(cost, all);
  return cost;
}

Cost Engine::gradient(const RowSource& x, const double* weights) { return full_batch(x, weights, true); }

Cost Engine::evaluate(const RowSource& x, const double* weights) { return full_batch(x, weights, false); }

void Engine::begin_step(const Rows& rows) {
  in_flight_.reserve(in_flight_.size() + 1);  // counting a step must not fail once it has begun
  const double total = rows.total_weight();
  if (total <= 0) {  // rows of no weight teach nothing
    settle();
    metrics_.rows += rows.count;
    return;
  }
  const std::int64_t number = steps_ + static_cast<std::int64_t>(in_flight_.size()) + 1;
  const StepScalars scalars = scalars_of(total, rho_hat_decay(number), number);
  backend_->write(control(Control::kScalars), &scalars);
  reserve(std::min(rows.count, full_batch_rows_));
  const auto update = [&] {
    model_->close(true);
    optimizer_.apply(model_->parameters(), memory_);
    model_->commit();
  };
  if (rows.count > full_batch_rows_) {
    compute(rows, true);
    update();
  } else {
    const Batch batch = load(rows, 0, rows.count, training_->batch());
    backend_->step(training_->number << 32 | rows.count, [&] {
      model_->begin(memory_, true, true);
      model_->accumulate(batch, true);
      update();
    });
  }
  in_flight_.push_back(rows);
}

void Engine::settle() {
  if (in_flight_.empty()) return;
  const std::vector<Rows> begun = std::exchange(in_flight_, {});
  StepLog log{};
  backend_->read(control(Control::kLog), &log);
  const auto good = static_cast<std::size_t>(log.steps) - static_cast<std::size_t>(metrics_.steps);
  steps_ += static_cast<std::int64_t>(good);
  metrics_.steps = static_cast<std::int64_t>(log.steps);
  metrics_.weight = log.weight;
  static_cast<StepCost&>(metrics_.sums) = log.sums;
  for (std::size_t i = 0; i < std::min(good, begun.size()); ++i) metrics_.rows += begun[i].count;
  if (log.failed == 0) return;
  log.failed = 0;
  backend_->write(control(Control::kLog), &log);
  Cost cost;
  backend_->read(control(Control::kCost), static_cast<StepCost*>(&cost));
  explain(cost, begun.at(good));
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

void Engine::run(const RowSource& x, const double* weights, const std::int64_t* order, std::int64_t count,
                 std::int64_t batch) {
  std::unique_lock lock(model_mutex_, std::defer_lock);
  for (std::int64_t first = 0; first < count;) {
    if (!lock.owns_lock()) lock.lock();
    try {
      Rows next{x, weights, order, first, count - first};
      std::int64_t begun = begin_small_steps(next, batch);
      if (begun == 0) {
        begun = next.count = std::min(batch, next.count);
        begin_step(next);
      }
      first += begun;
      const bool last = first >= count;
      if (last || static_cast<std::int64_t>(in_flight_.size()) >= backend_->steps_in_flight()) settle();
      backend_->poll();
    } catch (...) {
      settle();  // the steps begun before are done, and counted
      throw;
    }
    if (in_flight_.empty()) lock.unlock();  // nobody sees steps that are not counted
  }
}

std::unique_ptr<Engine::Inference> Engine::lease(std::int64_t rows) const {
  std::unique_ptr<Inference> leased;
  {
    const std::lock_guard lock(inference_mutex_);
    if (!inference_free_.empty()) {
      leased = std::move(inference_free_.back());
      inference_free_.pop_back();
    }
  }
  if (leased && leased->rows >= rows) return leased;
  leased = std::make_unique<Inference>();
  leased->rows = rows;
  const auto declare = [&](const char* name, std::int64_t cols, DType dtype) -> Tensor& {
    return leased->arena.declare(name, rows, cols, dtype, backend_->wants_shadows() && dtype == dtype_);
  };
  Tensor* made[] = {
      &declare("work", model_->widest(), dtype_),  &declare("work", model_->widest(), dtype_),
      &declare("work", model_->widest(), dtype_),  &declare("code", model_->widest(), dtype_),
      &declare("input", model_->widest(), dtype_), &declare("output", model_->widest(), DType::f64)};
  leased->arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  Tensor* const places[] = {&leased->work[0], &leased->work[1], &leased->work[2],
                            &leased->code,    &leased->input,   &leased->output};
  for (int i = 0; i < 6; ++i) *places[i] = *made[i];
  return leased;
}

template <class Body>
void Engine::infer(const RowSource& in, const Tensor& host_out, const Body& body) const {
  std::unique_ptr<Inference> scratch;
  {
    // Where steps are recorded, nothing may allocate beside them.
    std::unique_lock lock(model_mutex_, std::defer_lock);
    if (!backend_->reads_host_memory()) lock.lock();
    scratch = lease(std::min(kInferenceRows, in.rows));
  }
  for (std::int64_t first = 0; first < in.rows; first += kInferenceRows) {
    const std::int64_t count = std::min(kInferenceRows, in.rows - first);
    const Tensor target = host_out.slice_rows(first, count);
    const RowSource rows = rows_from(in, first, count);
    if (backend_->reads_host_memory()) {
      const std::shared_lock lock(model_mutex_);
      body(input_block(rows, *scratch), target, *scratch);
    } else {
      const std::unique_lock lock(model_mutex_);  // the device works on one thing at a time
      const Tensor out = shaped(scratch->output, count, target.cols, target.dtype);
      body(input_block(rows, *scratch), out, *scratch);
      backend_->read(out, target.data);
    }
    backend_->poll();
  }
  const std::lock_guard lock(inference_mutex_);
  inference_free_.push_back(std::move(scratch));
}

Tensor Engine::input_block(const RowSource& rows, const Inference& scratch) const {
  if (usable_in_place(*backend_, rows, dtype_)) return in_place(rows, 0, rows.rows);
  const Tensor staged = shaped(scratch.input, rows.rows, rows.cols);
  backend_->gather(rows, nullptr, staged);
  return staged;
}

void Engine::encode(const RowSource& x, void* code) const {
  infer(x, {code, x.rows, code_width(), code_width(), dtype_},
        [&](const Tensor& in, const Tensor& out, Inference& scratch) {
          model_->encode(in, out, scratch.work);
        });
}

void Engine::decode(const RowSource& code, void* x) const {
  infer(code, {x, code.rows, n_features_, n_features_, dtype_},
        [&](const Tensor& in, const Tensor& out, Inference& scratch) {
          model_->decode(in, out, scratch.work);
        });
}

void Engine::reconstruct(const RowSource& x, void* output) const {
  infer(x, {output, x.rows, n_features_, n_features_, dtype_},
        [&](const Tensor& in, const Tensor& out, Inference& scratch) {
          const Tensor code = shaped(scratch.code, in.rows, code_width());
          model_->encode(in, code, scratch.work);
          model_->decode(code, out, scratch.work);
        });
}

void Engine::score(const RowSource& x, double* losses) const {
  infer(x, {losses, x.rows, 1, 1, DType::f64}, [&](const Tensor& in, const Tensor& out, Inference& scratch) {
    model_->score(in, shaped(scratch.code, in.rows, n_features_), out, scratch.work);
  });
  for (std::int64_t i = 0; i < x.rows; ++i) losses[i] *= model_->loss_factor();
}

}  // namespace fastsae
