// The layers that are one product or one pass.
#include "core/error.h"
#include "kernels/list.h"
#include "models/image_layers.h"
#include "models/layer.h"
#include "models/sampling.h"

namespace fastsae {
namespace {

// out = x W' with W of [units x inputs], or of [inputs x units] where the weights are those of a tied layer.
class Dense final : public Layer {
 public:
  using Layer::Layer;

  void declare(Arena& parameters, Arena& gradients, DType dtype, bool shadowed,
               const Layer* tied_to) override {
    declare_weights(parameters, gradients, dtype, shadowed, tied_to, spec_.out.size(), spec_.in.size());
  }

  void forward(const Context& context, Tensor in, Tensor out, const Epilogue& epilogue) const override {
    context.backend.product({in}, {used(*weight), !tied_}, out, false, epilogue.kernel, epilogue.sums);
  }

  void backward(const Context& context, Tensor delta, Tensor out, const Epilogue& epilogue) const override {
    const bool fused = spec_.below.positions() == 1;
    context.backend.product({delta}, {used(*weight), tied_}, out, false, fused ? epilogue.kernel : nullptr,
                            fused ? epilogue.sums : Sums{});
    if (!fused) finish(context.backend, pixels(out, spec_.below), epilogue);
  }

  void weight_gradient(const Context& context, Tensor in, Tensor delta, bool accumulate,
                       const Epilogue& finish) const override {
    if (!tied_)
      return context.backend.product({delta, true}, {in}, *gradient, accumulate, finish.kernel, finish.sums);
    if (!accumulate && used(*gradient).rows < gradient->rows) context.backend.fill(*gradient, 0);
    context.backend.product({in, true}, {delta}, used(*gradient), accumulate, finish.kernel, finish.sums);
  }

 private:
  // A layer tied to a Gaussian code has the weights of its means, which come first.
  Tensor used(const Tensor& matrix) const { return tied_ ? matrix.slice_rows(0, spec_.in.size()) : matrix; }
};

// Puts a pixel's channels side by side, or each channel's pixels.
class Reorder final : public Layer {
 public:
  using Layer::Layer;

  void forward(const Context& context, Tensor in, Tensor out, const Epilogue&) const override {
    reorder(context.backend, in, out, spec_.in, spec_.kind == "channels_last");
  }

  void backward(const Context& context, Tensor delta, Tensor out, const Epilogue& epilogue) const override {
    reorder(context.backend, delta, out, spec_.in, spec_.kind == "channels_first");
    finish(context.backend, pixels(out, spec_.below), epilogue);
  }
};

}  // namespace

void Layer::declare_weights(Arena& parameters, Arena& gradients, DType dtype, bool shadowed,
                            const Layer* tied_to, std::int64_t weight_rows, std::int64_t weight_cols) {
  const std::string w = text("W", spec_.number), b = text("b", spec_.number);
  tied_ = tied_to != nullptr;
  if (tied_) {
    weight = tied_to->weight;
    gradient = tied_to->gradient;
  } else {
    weight = &parameters.declare(w, weight_rows, weight_cols, dtype, shadowed);
    gradient = &gradients.declare("gradient." + w, weight_rows, weight_cols, dtype);
  }
  bias = &parameters.declare(b, 1, spec_.out.channels, dtype);
  bias_gradient = &gradients.declare("gradient." + b, 1, spec_.out.channels, dtype);
}

void reorder(Backend& backend, Tensor in, Tensor out, const Shape& shape, bool to_last) {
  const std::int64_t rows = to_last ? shape.channels : shape.positions();
  const std::int64_t cols = to_last ? shape.positions() : shape.channels;
  with_scalar(in.dtype, [&](auto s) {
    using S = decltype(s);
    backend.map(shaped(out, in.rows * cols, rows), as_kernel(Transposed<S>{in.as<S>(), rows, cols}), {});
  });
}

std::unique_ptr<Layer> make_layer(const LayerSpec& spec) {
  if (spec.kind == "dense") return std::make_unique<Dense>(spec);
  if (spec.kind == "channels_last" || spec.kind == "channels_first") return std::make_unique<Reorder>(spec);
  if (spec.kind == "conv") return make_convolution(spec);
  if (spec.kind == "conv_transpose") return make_transposed_convolution(spec);
  if (spec.kind == "max_pool") return make_max_pool(spec);
  if (spec.kind == "max_unpool") return make_max_unpool(spec);
  if (spec.kind == "sampling") return make_sampling(spec);
  const double share = 1 / static_cast<double>(spec.kernel * spec.kernel);
  if (spec.kind == "mean_pool") return make_window_sum(spec, share);
  if (spec.kind == "mean_unpool") return make_window_spread(spec, share);
  if (spec.kind == "upsample") return make_window_spread(spec, 1);
  throw ValueError(text("layers: unknown kind '", spec.kind, "'"));
}

}  // namespace fastsae
