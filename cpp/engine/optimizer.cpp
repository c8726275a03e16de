#include "engine/optimizer.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "kernels/list.h"
#include "math/moments.h"

namespace fastsae {
namespace {

constexpr double kPi = 3.14159265358979323846;

// AdamW is Adam whose update also shrinks the weights.
std::string step_name(const std::string& optimizer) {
  return optimizer == "adamw" ? AdamStep::name : optimizer;
}

}  // namespace

double Schedule::share(std::int64_t step) const {
  if (step <= warm_up) {
    const double length = static_cast<double>(warm_up), done = static_cast<double>(step - 1) / length;
    return first_share < 0 ? static_cast<double>(step) / length : first_share + (1 - first_share) * done;
  }
  const std::int64_t after = step - 1 - warm_up;
  if (name == "step") return std::pow(gamma, static_cast<double>(after / step_size));
  if (!has_end()) return 1;
  const std::int64_t all = std::max<std::int64_t>(1, total_steps - warm_up);
  if (name == "linear") {
    const double length = static_cast<double>(decay_steps > 0 ? decay_steps : all);
    const double left = static_cast<double>(total_steps - (step - 1)) / length;
    return final_share + (1 - final_share) * std::clamp(left, 0.0, 1.0);
  }
  const double done = std::min(1.0, static_cast<double>(after) / static_cast<double>(all));
  return final_share + (1 - final_share) * (1 + std::cos(kPi * done)) / 2;
}

double Schedule::average_share(std::int64_t step) const {
  const double t = static_cast<double>(step), w = static_cast<double>(warm_up);
  if (step <= warm_up) return 6 * t / ((t + 1) * (2 * t + 1));  // t^2 of 1 + 4 + ... + t^2
  const double risen = warm_up > 0 ? (w + 1) * (2 * w + 1) / (6 * w) : 0;
  return 1 / (risen + t - w);
}

DType Optimizer::kept_as(DType full) const {
  const StatePrecision precision = spec_.state_precision;
  FS_REQUIRE(precision == StatePrecision::full || !averages(), "state_precision: '", spec_.name,
             "' keeps a parameter, no moment");
  return precision == StatePrecision::full   ? full
         : precision == StatePrecision::bf16 ? DType::bf16
                                             : DType::u8;
}

void Optimizer::declare(Arena& state, const Arena& parameters, const std::vector<Parameter>& list) {
  int moments = 0;
  with_named<OptimizerSteps>("optimizer", step_name(spec_.name), [&](auto step) { moments = step.moments; });
  for (const Parameter& parameter : list) {
    const Tensor& p = *parameter.value;
    std::string name;
    for (const Arena::Named& named : parameters.tensors()) {
      if (&named.tensor == parameter.value) name = named.name;
    }
    const DType kept = parameter.by_model ? kept_as(p.dtype) : p.dtype;
    const auto declare = [&](const char* which, Tensor*& moment, Tensor*& scale) {
      moment = &state.declare(text(which, "_moment.", name), p.rows, p.cols, kept);
      const std::int64_t blocks = (p.cols + kMomentBlock - 1) / kMomentBlock;
      if (kept == DType::u8) scale = &state.declare(text(which, "_scale.", name), p.rows, blocks, p.dtype);
    };
    Moments made;
    if (moments >= 1) declare("first", made.first, made.first_scale);
    if (moments >= 2) declare("second", made.second, made.second_scale);
    moments_.push_back(made);
  }
}

void Optimizer::set_scalars(StepScalars& scalars, std::int64_t step) const {
  const double t = static_cast<double>(step);
  scalars.learning_rate = spec_.learning_rate * spec_.schedule.share(step);
  scalars.adam_rate = scalars.learning_rate / (1 - std::pow(spec_.beta1, t));
  scalars.root_correction = 1 / std::sqrt(1 - std::pow(spec_.beta2, t));
  scalars.average_share = spec_.schedule.average_share(step);
  scalars.max_gradient_norm = spec_.max_gradient_norm;
}

void Optimizer::apply(const std::vector<Parameter>& parameters, const StepMemory& memory) {
  updates_.clear();
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (!parameters[i].by_model) updates_.push_back({*parameters[i].value, update(parameters[i], i, memory)});
  backend_.map_each(updates_);
}

OptimizerConstants Optimizer::constants(const Parameter& parameter) const {
  const double decay = spec_.name == "adamw" ? parameter.decay : 0.0;
  return {spec_.momentum, spec_.beta1, spec_.beta2, spec_.epsilon, decay};
}

std::vector<MatrixUpdate> Optimizer::updates_by_model(const std::vector<Parameter>& parameters) const {
  int place = 0, kind = 0;
  for_each_type(OptimizerSteps{}, [&](auto* step) {
    if (step_name(spec_.name) == std::remove_pointer_t<decltype(step)>::name) kind = place;
    ++place;
  });
  std::vector<MatrixUpdate> updates;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].by_model) continue;
    const auto of = [](const Tensor* tensor) { return tensor == nullptr ? Tensor{} : *tensor; };
    const Moments& kept = moments_[i];
    updates.push_back({kind, constants(parameters[i]), of(kept.first), of(kept.second), of(kept.first_scale),
                       of(kept.second_scale)});
  }
  return updates;
}

bool Optimizer::averages() const { return spec_.name == SignSgdStep::name; }

void Optimizer::average(const std::vector<Parameter>& parameters) {
  updates_.clear();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    with_scalar(parameters[i].value->dtype, [&](auto s) {
      using S = decltype(s);
      const auto back = static_cast<S>(1 - 1 / spec_.momentum);
      updates_.push_back({*parameters[i].value, as_kernel(Average<S>{iterate(i).view<const S>(), back})});
    });
  }
  backend_.map_each(updates_);
}

Kernel Optimizer::update(const Parameter& parameter, std::size_t index, const StepMemory& memory) const {
  const Tensor *first = moments_[index].first, *second = moments_[index].second;
  const OptimizerConstants constants = this->constants(parameter);
  Kernel kernel{};
  with_named<OptimizerSteps>("optimizer", step_name(spec_.name), [&](auto kind) {
    with_scalar(parameter.value->dtype, [&](auto s) {
      using S = decltype(s);
      const auto moment = [](const Tensor* tensor) {
        return tensor != nullptr ? tensor->view<S>() : View<S>{};
      };
      kernel = as_kernel(Update<S, decltype(kind)>{parameter.gradient->view<const S>(), moment(first),
                                                   moment(second), constants, memory.scalars, memory.log});
    });
  });
  return kernel;
}

}  // namespace fastsae
