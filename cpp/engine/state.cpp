// What an engine holds, read and written from outside.
#include "core/error.h"
#include "engine/engine.h"

namespace fastsae {

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
  const StepLog empty{};
  backend_->write(control(Control::kLog), &empty);
  metrics_ = {};
}

double Engine::learning_rate() const {
  const std::shared_lock lock(model_mutex_);
  return optimizer_.learning_rate();
}

void Engine::set_learning_rate(double rate) {
  const std::unique_lock lock(model_mutex_);
  optimizer_.set_learning_rate(rate);
}

}  // namespace fastsae
