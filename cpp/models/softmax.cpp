#include "models/softmax.h"

#include "kernels/list.h"

namespace fastsae {
namespace {

void sum_rows(Backend& backend, const Tensor& logits, const Tensor& log_sum, const Tensor* target,
              double* mass) {
  with_scalar(logits.dtype, [&](auto s) {
    using S = decltype(s);
    const View<const S> goal = target == nullptr ? View<const S>{} : target->view<const S>();
    backend.map(log_sum, as_kernel(SoftmaxRows<S>{logits.view<S>(), goal, mass, logits.cols}), {});
  });
}

}  // namespace

void Softmax::declare_scratch(Arena& scratch, std::int64_t rows) {
  log_sum_ = &scratch.declare("log_sum", rows, 1, DType::f64);
  mass_ = &scratch.declare("mass", rows, 1, DType::f64);
}

void Softmax::delta(Backend& backend, Tensor logits, Tensor target, Tensor weight, const StepScalars* step,
                    double factor, Sums sums) const {
  const Tensor log_sum = log_sum_->slice_rows(0, logits.rows);
  sum_rows(backend, logits, log_sum, &target, mass_->as<double>());
  with_scalar(logits.dtype, [&](auto s) {
    using S = decltype(s);
    const SoftmaxDelta<S> kernel{
        log_sum.as<double>(), mass_->as<double>(), weight.as<S>(), target.view<const S>(), step, factor};
    backend.map(logits, as_kernel(kernel), sums);
  });
}

void Softmax::probabilities(Backend& backend, Tensor logits, Tensor log_sum) {
  sum_rows(backend, logits, log_sum, nullptr, nullptr);
  with_scalar(logits.dtype, [&](auto s) {
    backend.map(logits, as_kernel(SoftmaxValue<decltype(s)>{log_sum.as<double>()}), {});
  });
}

void Softmax::losses(Backend& backend, Tensor logits, Tensor target, Tensor log_sum, Tensor losses) {
  sum_rows(backend, logits, log_sum, nullptr, nullptr);
  with_scalar(logits.dtype, [&](auto s) {
    using S = decltype(s);
    backend.map(logits, as_kernel(SoftmaxLoss<S>{log_sum.as<double>(), target.view<const S>()}), {losses});
  });
}

}  // namespace fastsae
