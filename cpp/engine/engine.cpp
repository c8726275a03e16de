#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <utility>

#include "core/error.h"
#include "engine/scratch.h"

namespace fastsae {
namespace {

constexpr std::size_t kFullBatchBytes = std::size_t{1} << 30;  // scratch of a full-batch gradient

double largest(DType dtype) {
  return dtype == DType::f32 ? std::numeric_limits<float>::max() : std::numeric_limits<double>::max();
}

}  // namespace

Engine::Engine(const ModelSpec& model, const OptimizerSpec& optimizer, std::unique_ptr<Backend> backend,
               std::int64_t full_batch_rows)
    : dtype_(model.dtype),
      rho_hat_decay_(model.moving_rho_hat ? model.rho_hat_decay : 0),
      n_features_(model.n_features),
      n_outputs_(model.n_outputs),
      backend_(std::move(backend)),
      model_(make_model(model, *backend_)),
      optimizer_(optimizer, *backend_),
      full_batch_rows_(full_batch_rows) {
  model_->declare(parameters_, gradients_, matrices_, state_);
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
  model_->take_updates(optimizer_.updates_by_model(model_->parameters()));
  memory_ = {scalars.as<StepScalars>(), totals, cost.as<StepCost>(), log.as<StepLog>()};
  small_ = model_->small(memory_);
  for (std::size_t i = 0; small_ && i < model_->parameters().size(); ++i) {
    small_->parameters[i].update = optimizer_.update(model_->parameters()[i], i, memory_);
  }
  if (full_batch_rows_ <= 0 && model_->ranks_rows()) {
    full_batch_rows_ =
        std::numeric_limits<std::int64_t>::max();  // all of a batch, or an error for want of memory
  } else if (full_batch_rows_ <= 0) {
    Arena one_row;
    model_->declare_scratch(one_row, 64);
    const std::size_t row_bytes =
        one_row.bytes() / 64 + static_cast<std::size_t>(n_features_ + 1) * size_of(dtype_);
    full_batch_rows_ =
        std::max<std::int64_t>(256, static_cast<std::int64_t>(kFullBatchBytes / row_bytes) / 256 * 256);
  }
}

Engine::~Engine() = default;

void Engine::reserve_matrices() {
  if (matrices_.tensors().empty() || matrices_.tensors().front().tensor.exists()) return;
  matrices_.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
}

void Engine::reserve(std::int64_t rows, bool targets) {
  if (model_->needs_matrices()) reserve_matrices();
  if (training_ && training_->rows >= rows && (training_->target != nullptr || !targets)) return;
  auto made = std::make_unique<Training>();
  made->rows = std::max(rows, training_ ? training_->rows : 0);
  training_.reset();
  ones_ = nullptr;
  made->number = ++reservations_;
  const bool shadowed = backend_->wants_shadows();
  made->x = &made->arena.declare("x", made->rows, n_features_, dtype_, shadowed);
  if (targets) made->target = &made->arena.declare("target", made->rows, n_outputs_, dtype_);
  made->weight = &made->arena.declare("weight", 1, made->rows, dtype_);
  if (model_->draws_noise()) made->numbers = &made->arena.declare("numbers", 1, made->rows, DType::f64);
  model_->declare_scratch(made->arena, made->rows);
  made->arena.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  training_ = std::move(made);
}

void Engine::reserve_for(const Rows& rows) {
  reserve(std::min(rows.count, full_batch_rows_), rows.of.target.data != nullptr);
}

bool Engine::takes_in_place(const RowSource& x) const {
  const bool gapless = x.stride_bytes == x.cols * static_cast<std::int64_t>(size_of(x.dtype));
  return usable_in_place(*backend_, x, dtype_) && (gapless || !model_->needs_dense_rows());
}

// Rows of `from` into `to`, or `to` becomes a view of them.
void Engine::load_rows(const RowSource& from, const std::int64_t* order, std::int64_t first, Tensor& to,
                       bool fixed) {
  const RowSource rows = order == nullptr ? rows_from(from, first, to.rows) : from;
  if (order == nullptr && !fixed && takes_in_place(rows))
    to = in_place(rows, 0, to.rows);
  else
    backend_->gather(rows, order, to);
}

Batch Engine::load(const Rows& rows, std::int64_t done, std::int64_t count, const Batch& memory, bool fixed) {
  Batch batch{memory.x.slice_rows(0, count), {}, shaped(memory.weight, 1, count), {}};
  const std::int64_t* order = rows.order == nullptr ? nullptr : rows.order + rows.first + done;
  load_rows(rows.of.x, order, rows.first + done, batch.x, fixed);
  batch.target = batch.x;
  if (rows.of.target.data != nullptr) {
    batch.target = memory.target.slice_rows(0, count);
    load_rows(rows.of.target, order, rows.first + done, batch.target, fixed);
  }
  if (rows.of.weights == nullptr) {
    if (ones_ != memory.weight.data) backend_->fill(memory.weight, 1);
    ones_ = memory.weight.data;
  } else {
    ones_ = nullptr;
    const std::int64_t* column_order = rows.column.on_device ? nullptr : order;
    const std::int64_t offset = column_order == nullptr ? rows.first + done : 0;
    const RowSource column = rows_from(rows.column, offset, rows.column.rows - offset);
    backend_->gather(column, column_order, shaped(batch.weight, count, 1));
  }
  if (rows.numbers.data != nullptr) {
    batch.numbers = shaped(memory.numbers, 1, count);
    backend_->gather(rows_from(rows.numbers, rows.first + done, count), nullptr,
                     shaped(batch.numbers, count, 1));
  }
  return batch;
}

RowSource Engine::on_device(const RowSource& column, const std::int64_t* order, std::int64_t count,
                            Column& held) {
  if (column.data == nullptr || backend_->reads(column)) return column;
  if (held.room < count) {
    held.memory.reset();
    held.room = 0;
    held.memory = backend_->allocate(static_cast<std::size_t>(count) * sizeof(double));
    held.room = count;
  }
  const Tensor there{held.memory.get(), count, 1, 1, DType::f64};
  backend_->gather(column, order, there);
  return source_of(there);
}

Engine::Rows Engine::all_rows(const Examples& examples, const std::int64_t* order, std::int64_t count,
                              Columns& held) {
  const std::int64_t rows = examples.x.rows;
  const RowSource weights{examples.weights, rows, 1, sizeof(double), DType::f64};
  Rows all{examples, order, 0, count, on_device(weights, order, count, held.weights), {}};
  if (!model_->draws_noise()) return all;
  std::vector<double>& numbers = held.numbers.host;
  numbers.resize(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t row = order == nullptr ? i : order[i];
    numbers[static_cast<std::size_t>(i)] =
        static_cast<double>(examples.numbers == nullptr ? row : examples.numbers[row]);
  }
  const RowSource column{numbers.data(), count, 1, sizeof(double), DType::f64};
  all.numbers = on_device(column, nullptr, count, held.numbers);
  return all;
}

StepScalars Engine::scalars_of(double total, double rho_hat_decay, std::int64_t step) const {
  StepScalars scalars{};
  scalars.total = total;
  scalars.inverse_total = 1 / total;
  scalars.rho_hat_decay = rho_hat_decay;
  scalars.seed = static_cast<double>(noise_seed_);
  scalars.epoch = static_cast<double>(epoch_);
  scalars.step = static_cast<double>(step);
  scalars.penalty_share = 1;
  optimizer_.set_scalars(scalars, step);
  model_->set_step(scalars, step);
  return scalars;
}

void Engine::compute(const Rows& rows, bool with_gradient) {
  const std::int64_t chunk = std::min(rows.count, full_batch_rows_);
  const bool one_chunk = chunk == rows.count;
  FS_REQUIRE(one_chunk || !model_->ranks_rows(),
             "X: the rows of a batch belong together in this model (winners='lifetime', or a sparse code), ",
             "so that all must be held at once, and ", rows.count,
             " are more than full_batch_rows=", full_batch_rows_);
  const auto for_each_chunk = [&](auto&& body) {
    for (std::int64_t done = 0; done < rows.count; done += chunk) {
      const std::int64_t count = std::min(chunk, rows.count - done);
      body(load(rows, done, count, training_->batch(), false), done + count == rows.count);
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
  if (of.weights == nullptr) return static_cast<double>(count);
  double total = 0;
  for (std::int64_t i = 0; i < count; ++i) total += of.weights[index(i)];
  return total;
}

Cost Engine::full_batch(const Examples& examples, bool with_gradient) {
  const std::unique_lock lock(model_mutex_);
  const Finish finish{*backend_};
  const Rows all = all_rows(examples, nullptr, examples.x.rows, columns_);
  const double total = all.total_weight();
  FS_REQUIRE(total > 0, "sample_weight: expected a positive sum, got ", total);
  reserve_for(all);
  // An evaluation takes the mean of the rows it is given; a gradient is that of the next step.
  const StepScalars scalars = scalars_of(total, with_gradient ? rho_hat_decay(steps_ + 1) : 0, steps_ + 1);
  backend_->write(control(Control::kScalars), &scalars);
  if (with_gradient) reserve_matrices();
  compute(all, with_gradient);
  if (with_gradient) model_->write_matrices();
  matrices_shown_ = matrices_shown_ || with_gradient;
  model_->close(false);
  Cost cost;
  backend_->read(control(Control::kCost), static_cast<StepCost*>(&cost));
  if (!std::isfinite(cost.loss()) || !std::isfinite(cost.gradient_norm)) explain(cost, all);
  return cost;
}

Cost Engine::gradient(const Examples& examples) { return full_batch(examples, true); }

Cost Engine::evaluate(const Examples& examples) { return full_batch(examples, false); }

void Engine::begin_step(const Rows& rows) {
  matrices_shown_ = false;
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
  reserve_for(rows);
  const auto update = [&] {
    model_->close(true);
    optimizer_.apply(model_->parameters(), memory_);
    model_->commit();
  };
  if (rows.count > full_batch_rows_) {
    compute(rows, true);
    update();
  } else {
    const Batch batch = load(rows, 0, rows.count, training_->batch(), !backend_->reads_host_memory());
    const bool aimed = rows.of.target.data != nullptr;  // else the target is x, elsewhere in memory
    const auto step = [&] {
      model_->begin(memory_, true, true);
      model_->accumulate(batch, true);
      update();
    };
    // By reference: a std::function would allocate to hold it.
    backend_->step(training_->number << 33 | std::int64_t{aimed} << 32 | rows.count, std::ref(step));
  }
  in_flight_.push_back(rows);
}

void Engine::settle() {
  if (in_flight_.empty()) return;
  settling_.clear();  // both keep their memory from step to step
  settling_.swap(in_flight_);
  StepLog log{};
  backend_->read(control(Control::kLog), &log);
  const auto good = static_cast<std::size_t>(log.steps) - static_cast<std::size_t>(metrics_.steps);
  steps_ += static_cast<std::int64_t>(good);
  metrics_.steps = static_cast<std::int64_t>(log.steps);
  metrics_.weight = log.weight;
  static_cast<StepCost&>(metrics_.sums) = log.sums;
  for (std::size_t i = 0; i < std::min(good, settling_.size()); ++i) metrics_.rows += settling_[i].count;
  if (log.failed == 0) return;
  log.failed = 0;
  backend_->write(control(Control::kLog), &log);
  Cost cost;
  backend_->read(control(Control::kCost), static_cast<StepCost*>(&cost));
  explain(cost, settling_.at(good));
}

void Engine::explain(const Cost& cost, const Rows& rows) {
  reserve_for(rows);
  for (std::int64_t done = 0; done < rows.count; done += training_->rows) {
    const std::int64_t count = std::min(training_->rows, rows.count - done);
    const Batch batch = load(rows, done, count, training_->batch(), false);
    for (const Tensor& part : {batch.x, batch.target}) {
      const std::int64_t bad =
          backend_->first_row_outside(source_of(part), -largest(dtype_), largest(dtype_));
      if (bad < 0) continue;
      throw ValueError(text(part.data == batch.x.data ? "X" : "targets", ": row ", rows.index(done + bad),
                            " contains NaN or infinity",
                            dtype_ == DType::f32 ? ", or a number too large for float32" : ""));
    }
  }
  throw NonFiniteError(text("step ", steps_ + 1, ": the loss is ", cost.loss(), " and the gradient norm ",
                            cost.gradient_norm,
                            "; the parameters are those of the step before. Lower learning_rate or scale X"));
}

void Engine::run(const Examples& examples, const std::int64_t* order, std::int64_t count,
                 std::int64_t batch) {
  std::unique_lock lock(model_mutex_);
  const Schedule& schedule = optimizer_.schedule();
  FS_REQUIRE(!schedule.has_end() || schedule.total_steps > 0, "lr_total_steps: lr_schedule='", schedule.name,
             "' needs the number of all steps, and it is not known");
  Columns held = std::exchange(columns_, {});
  const Rows all = all_rows(examples, order, count, held);
  for (std::int64_t first = 0; first < count;) {
    if (!lock.owns_lock()) lock.lock();
    try {
      FS_REQUIRE(!training_parameters_, "averaged: expected False to take steps, got True");
      Rows next = all;
      next.first = first;
      next.count = count - first;
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
      backend_->finish();  // the rows may go
      settle();            // the steps begun before are done, and counted
      throw;
    }
    if (in_flight_.empty() && first < count) lock.unlock();  // nobody sees steps that are not counted
  }
  columns_ = std::move(held);
}

}  // namespace fastsae
