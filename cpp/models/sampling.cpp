// The sampling of a Gaussian code (Kingma and Welling 2013) and its cost, beta warm(epoch) sum_j max(free bits, KL_j)
// with KL_j the mean over the rows. Free bits: Kingma et al. 2016; beta: Higgins et al. 2017.
#include "models/sampling.h"

#include "kernels/list.h"

namespace fastsae {
namespace {

// In: means, then log-variances. In inference the code is the means.
class Sampling final : public Layer {
 public:
  using Layer::Layer;

  void declare_scratch(Arena& scratch, DType dtype) override {
    sum_kl_ = &scratch.declare("code_kl", 1, units(), DType::f64);
    cost_ = &scratch.declare("code_cost", 1, units(), DType::f64);
    column_ = &scratch.declare("code_column", 1, units(), dtype);
  }

  std::int64_t work_size(std::int64_t rows) const override { return rows * 3 * units(); }

  void forward(const Context& context, Tensor in, Tensor out, const Epilogue&) const override {
    if (context.step == nullptr) {
      in.cols = units();
      return context.backend.copy(out, in);
    }
    const Batch& batch = *context.batch;
    with_scalar(in.dtype, [&](auto s) {
      using S = decltype(s);
      const SampleCode<S> kernel{in.view<const S>(),   slopes<S>(context),         units(),
                                 batch.weight.as<S>(), batch.numbers.as<double>(), context.step->scalars};
      context.backend.map(out, as_kernel(kernel), {*sum_kl_, !context.first});
    });
  }

  void backward(const Context& context, Tensor delta, Tensor out, const Epilogue& epilogue) const override {
    with_scalar(delta.dtype, [&](auto s) {
      using S = decltype(s);
      const View<S> kept = slopes<S>(context);
      const CodeDelta<S> kernel{
          {kept.data, kept.stride}, out.view<S>(), units(), context.batch->weight.as<S>(), column_->as<S>()};
      context.backend.map(delta, as_kernel(kernel), {});
    });
    finish(context.backend, out, epilogue);
  }

  bool needs_means() const override { return true; }
  void finish_means(Backend& backend, const StepMemory& step) const override {
    with_scalar(column_->dtype, [&](auto s) {
      using S = decltype(s);
      const CodeCost<S> kernel{sum_kl_->as<double>(), step.scalars, spec_.beta, spec_.free_bits,
                               spec_.warm_up};
      backend.map(*column_, as_kernel(kernel), {*cost_});
    });
  }
  void add_cost(StepTotals* totals, std::vector<Total>& sums) const override {
    sums.push_back({*cost_, 1, &totals->kl});
  }
  bool draws_noise() const override { return true; }

 private:
  std::int64_t units() const { return spec_.out.channels; }
  template <class S>
  View<S> slopes(const Context& context) const {
    return {context.work.as<S>(), 3 * units()};
  }

  Tensor* sum_kl_ = nullptr;  // [1 x units] of w KL
  Tensor* cost_ = nullptr;    // [1 x units] each latent's part of J
  Tensor* column_ = nullptr;  // [1 x units] slope of J by w KL
};

}  // namespace

LayerSpec heads_of(const LayerSpec& gaussian) {
  LayerSpec heads = gaussian;
  heads.kind = "dense";
  heads.out.channels = 2 * gaussian.out.channels;
  heads.beta = 0;  // the cost is the sampling's
  return heads;
}

LayerSpec sampling_of(const LayerSpec& gaussian) {
  LayerSpec sampling = gaussian;
  sampling.kind = "sampling";
  sampling.in = heads_of(gaussian).out;
  return sampling;
}

void clamp_moments(Backend& backend, Tensor moments) {
  with_scalar(moments.dtype, [&](auto s) {
    backend.map(moments, as_kernel(ClampMoments<decltype(s)>{moments.cols / 2}), {});
  });
}

std::unique_ptr<Layer> make_sampling(const LayerSpec& spec) { return std::make_unique<Sampling>(spec); }

}  // namespace fastsae
