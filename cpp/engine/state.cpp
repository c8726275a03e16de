// What an engine holds, read and written from outside.
#include "core/error.h"
#include "engine/scratch.h"

namespace fastsae {
namespace {

constexpr double kHeldShare = 0.7;  // of free memory that held rows may take

}  // namespace

std::vector<const Arena*> Engine::arenas() const {
  std::vector<const Arena*> arenas{&parameters_, &gradients_, &matrices_, &state_};
  if (training_parameters_) arenas.push_back(&*training_parameters_);
  return arenas;
}

std::vector<std::string> Engine::names() const {
  const std::shared_lock lock(model_mutex_);
  std::vector<std::string> names;
  for (const Arena* arena : arenas()) {
    for (const Arena::Named& named : arena->tensors()) names.push_back(named.name);
  }
  return names;
}

const Tensor& Engine::find(const std::string& name) const {
  for (const Arena* arena : arenas()) {
    if (const Tensor* found = arena->find(name)) return *found;
  }
  throw ValueError(text("name: no tensor is called '", name, "'"));
}

Tensor Engine::tensor(const std::string& name) const {
  const std::shared_lock lock(model_mutex_);
  return find(name);
}

// A step leaves these gradients in parts, or makes none.
void Engine::check_shown(const std::string& name) const {
  FS_REQUIRE(matrices_shown_ || matrices_.find(name) == nullptr, "name: '", name,
             "' is there between a call of gradient() and the next step");
}

void Engine::read(const std::string& name, void* to) const {
  const std::shared_lock lock(model_mutex_);
  const Tensor& from = find(name);
  check_shown(name);
  backend_->read(from, to);
}

void Engine::write(const std::string& name, const void* from) {
  const std::unique_lock lock(model_mutex_);
  const Tensor& to = find(name);
  check_shown(name);
  backend_->write(to, from);
  const std::vector<Parameter>& parameters = model_->parameters();
  for (std::size_t i = 0; optimizer_.averages() && i < parameters.size(); ++i) {
    if (parameters[i].value != &to) continue;
    backend_->copy(optimizer_.iterate(i), to);
    if (training_parameters_) backend_->copy(*training_parameters_->find("training." + name), to);
  }
}

bool Engine::averaged() const {
  const std::shared_lock lock(model_mutex_);
  return training_parameters_.has_value();
}

void Engine::set_averaged(bool averaged) {
  const std::unique_lock lock(model_mutex_);
  if (averaged == training_parameters_.has_value()) return;
  FS_REQUIRE(optimizer_.averages(), "averaged: this optimizer keeps no average of the parameters");
  const auto held = [&](const Arena::Named& named) -> const Tensor& {
    return *training_parameters_->find("training." + named.name);
  };
  if (!averaged) {
    for (const Arena::Named& named : parameters_.tensors()) backend_->copy(named.tensor, held(named));
    backend_->finish();  // before their memory goes
    training_parameters_.reset();
    return;
  }
  Arena made;
  for (const Arena::Named& named : parameters_.tensors()) {
    const Tensor& p = named.tensor;
    made.declare("training." + named.name, p.rows, p.cols, p.dtype);
  }
  made.allocate([this](std::size_t bytes) { return backend_->allocate(bytes); });
  training_parameters_ = std::move(made);
  for (const Arena::Named& named : parameters_.tensors()) backend_->copy(held(named), named.tensor);
  optimizer_.average(model_->parameters());
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
  const StepLog empty{};
  backend_->write(control(Control::kLog), &empty);
  metrics_ = {};
  model_->reset_metrics();
}

double Engine::learning_rate() const {
  const std::shared_lock lock(model_mutex_);
  return optimizer_.learning_rate();
}

void Engine::set_learning_rate(double rate) {
  const std::unique_lock lock(model_mutex_);
  optimizer_.set_learning_rate(rate);
}

std::int64_t Engine::total_steps() const {
  const std::shared_lock lock(model_mutex_);
  return optimizer_.schedule().total_steps;
}

void Engine::set_total_steps(std::int64_t steps) {
  const std::unique_lock lock(model_mutex_);
  optimizer_.set_total_steps(steps);
}

std::int64_t Engine::noise_seed() const {
  const std::shared_lock lock(model_mutex_);
  return noise_seed_;
}

void Engine::set_noise_seed(std::int64_t seed) {
  const std::unique_lock lock(model_mutex_);
  noise_seed_ = seed;
}

std::int64_t Engine::epoch() const {
  const std::shared_lock lock(model_mutex_);
  return epoch_;
}

void Engine::set_epoch(std::int64_t epoch) {
  const std::unique_lock lock(model_mutex_);
  epoch_ = epoch;
}

Memory Engine::allocate(std::size_t bytes) const {
  const std::unique_lock lock(model_mutex_);
  return backend_->allocate(bytes);
}

bool Engine::has_room(std::size_t bytes) const {
  const std::unique_lock lock(model_mutex_);
  return !backend_->reads_host_memory() &&
         static_cast<double>(bytes) <= kHeldShare * static_cast<double>(backend_->free_memory());
}

void Engine::take(const RowSource& x, const std::int64_t* order, const Tensor& to) const {
  const std::unique_lock lock(model_mutex_);
  const Finish finish{*backend_};
  backend_->gather(x, order, to);
}

std::int64_t Engine::first_row_outside(const RowSource& x, double low, double high) const {
  const std::unique_lock lock(model_mutex_);
  return backend_->first_row_outside(x, low, high);
}

void Engine::with_stream(const std::function<void(void*)>& body) const {
  const std::unique_lock lock(model_mutex_);
  body(backend_->stream());
  backend_->finish();
}

}  // namespace fastsae
