// Pools, and what undoes them: one pass each way.
#include "kernels/list.h"
#include "models/image_layers.h"

namespace fastsae {
namespace {

// Windows side by side over the images of `shape`.
PoolWindows windows_of(const Shape& shape, const Shape& pooled, std::int64_t size) {
  return {shape.height, shape.width, pooled.height, pooled.width, size};
}

// A layer that is one pass forward and one back.
template <class Forward, class Backward>
class Windowed final : public Layer {
 public:
  Windowed(const LayerSpec& spec, bool keeps_places, Forward forward, Backward backward)
      : Layer(spec), keeps_places_(keeps_places), forward_(forward), backward_(backward) {}

  std::int64_t places_size(std::int64_t rows) const override {
    return keeps_places_ ? rows * spec_.out.size() : 0;
  }

  void forward(const Context& context, Tensor in, Tensor out, const Epilogue&) const override {
    context.backend.map(pixels(out, spec_.out), forward_(in, context.places), {});
  }

  void backward(const Context& context, Tensor delta, Tensor out, const Epilogue& epilogue) const override {
    context.backend.map(pixels(out, spec_.in), backward_(delta, context.places), {});
    finish(context.backend, pixels(out, spec_.below), epilogue);
  }

 private:
  const bool keeps_places_;
  const Forward forward_;
  const Backward backward_;
};

template <class Forward, class Backward>
std::unique_ptr<Layer> windowed(const LayerSpec& spec, bool keeps_places, Forward forward,
                                Backward backward) {
  return std::make_unique<Windowed<Forward, Backward>>(spec, keeps_places, forward, backward);
}

// Kernels of a tensor and the places that go with its windows.
template <template <class> class K>
auto by_places(const PoolWindows& windows, std::int64_t channels) {
  return [=](const Tensor& from, const Tensor& places) {
    return with_scalar(from.dtype, [&](auto s) {
      using S = decltype(s);
      return as_kernel(K<S>{from.as<S>(), places.as<S>(), windows, channels});
    });
  };
}

template <template <class> class K>
auto by_factor(const PoolWindows& windows, std::int64_t channels, double factor) {
  return [=](const Tensor& from, const Tensor&) {
    return with_scalar(from.dtype, [&](auto s) {
      using S = decltype(s);
      return as_kernel(K<S>{from.as<S>(), windows, channels, static_cast<S>(factor)});
    });
  };
}

}  // namespace

std::unique_ptr<Layer> make_max_pool(const LayerSpec& spec) {
  const PoolWindows windows = windows_of(spec.in, spec.out, spec.kernel);
  return windowed(spec, true, by_places<MaxPool>(windows, spec.in.channels),
                  by_places<PutMaxima>(windows, spec.in.channels));
}

std::unique_ptr<Layer> make_max_unpool(const LayerSpec& spec) {
  const PoolWindows windows = windows_of(spec.out, spec.in, spec.kernel);
  return windowed(spec, false, by_places<PutMaxima>(windows, spec.in.channels),
                  by_places<TakeMaxima>(windows, spec.in.channels));
}

std::unique_ptr<Layer> make_window_sum(const LayerSpec& spec, double factor) {
  const PoolWindows windows = windows_of(spec.in, spec.out, spec.kernel);
  return windowed(spec, false, by_factor<SumWindows>(windows, spec.in.channels, factor),
                  by_factor<SpreadWindows>(windows, spec.in.channels, factor));
}

std::unique_ptr<Layer> make_window_spread(const LayerSpec& spec, double factor) {
  const PoolWindows windows = windows_of(spec.out, spec.in, spec.kernel);
  return windowed(spec, false, by_factor<SpreadWindows>(windows, spec.in.channels, factor),
                  by_factor<SumWindows>(windows, spec.in.channels, factor));
}

}  // namespace fastsae
