#include "engine/optimizer.h"

#include <cmath>

#include "kernels/list.h"

namespace fastsae {
namespace {

// AdamW is Adam whose update also shrinks the weights.
std::string step_name(const std::string& optimizer) {
  return optimizer == "adamw" ? AdamStep::name : optimizer;
}

template <class S>
auto scalars_of(SgdStep, const OptimizerSpec& spec, std::int64_t, bool) {
  return SgdStep::Scalars<S>{static_cast<S>(spec.learning_rate)};
}

template <class S, class Step>
  requires(Step::moments == 1)
auto scalars_of(Step, const OptimizerSpec& spec, std::int64_t, bool) {
  return
      typename Step::template Scalars<S>{static_cast<S>(spec.learning_rate), static_cast<S>(spec.momentum)};
}

template <class S>
auto scalars_of(AdamStep, const OptimizerSpec& spec, std::int64_t step, bool decays) {
  const double t = static_cast<double>(step);
  const double decay = spec.name == "adamw" && decays ? spec.learning_rate * spec.weight_decay : 0.0;
  return AdamStep::Scalars<S>{static_cast<S>(spec.learning_rate / (1 - std::pow(spec.beta1, t))),
                              static_cast<S>(1 / std::sqrt(1 - std::pow(spec.beta2, t))),
                              static_cast<S>(spec.beta1),
                              static_cast<S>(1 - spec.beta1),
                              static_cast<S>(spec.beta2),
                              static_cast<S>(1 - spec.beta2),
                              static_cast<S>(spec.epsilon),
                              static_cast<S>(1 - decay)};
}

}  // namespace

void Optimizer::declare(Arena& state, const Arena& parameters, const std::vector<Parameter>& list) {
  int moments = 0;
  with_named<OptimizerSteps>("optimizer", step_name(spec_.name), [&](auto step) { moments = step.moments; });
  for (const Parameter& parameter : list) {
    const Tensor& p = *parameter.value;
    std::string name;
    for (const Arena::Named& named : parameters.tensors()) {
      if (&named.tensor == parameter.value) name = named.name;
    }
    Moments made;
    if (moments >= 1) made.first = &state.declare("first_moment." + name, p.rows, p.cols, p.dtype);
    if (moments >= 2) made.second = &state.declare("second_moment." + name, p.rows, p.cols, p.dtype);
    moments_.push_back(made);
  }
}

void Optimizer::apply(const std::vector<Parameter>& parameters, std::int64_t step) {
  with_named<OptimizerSteps>("optimizer", step_name(spec_.name), [&](auto kind) {
    for (std::size_t i = 0; i < parameters.size(); ++i) {
      const Parameter& p = parameters[i];
      const auto [first, second] = moments_[i];
      with_scalar(p.value->dtype, [&](auto s) {
        using S = decltype(s);
        const auto moment = [](const Tensor* tensor) {
          return tensor != nullptr ? tensor->view<S>() : View<S>{};
        };
        const Update<S, decltype(kind)> update{p.gradient->view<const S>(), moment(first), moment(second),
                                               scalars_of<S>(kind, spec_, step, p.decays)};
        backend_.map(*p.value, as_kernel(update), {});
      });
    }
  });
}

}  // namespace fastsae
