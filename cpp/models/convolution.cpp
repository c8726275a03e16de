// Convolutions as products with unfolded images. The columns of a batch are made in tiles of whole images; where
// one tile holds all of them they stay in the layer's work for the other uses of the pass.
#include <algorithm>

#include "models/image_layers.h"

namespace fastsae {
namespace {

constexpr std::int64_t kColumns = std::int64_t{1} << 21;  // elements of a tile, unless one image has more

// Windows over the images of `shape`, one for each pixel of `small`.
Windows windows_over(const Shape& shape, const Shape& small, const LayerSpec& spec) {
  return {shape.channels, shape.height, shape.width,  spec.kernel,
          spec.stride,    spec.padding, small.height, small.width};
}

// What a convolution and its transpose share: columns of the windows over the larger images.
class Unfolding : public Layer {
 public:
  Unfolding(const LayerSpec& spec, const Shape& large, const Shape& small)
      : Layer(spec),
        large_(large),
        small_(small),
        windows_(windows_over(large, small, spec)),
        per_image_(windows_.per_image() * windows_.size()),
        is_copy_(spec.padding == 0 && ((spec.kernel == 1 && spec.stride == 1) ||
                                       (spec.kernel == large.height && spec.kernel == large.width))) {}

  void declare(Arena& parameters, Arena& gradients, DType dtype, bool shadowed,
               const Layer* tied_to) override {
    declare_weights(parameters, gradients, dtype, shadowed, tied_to, small_.channels, windows_.size());
  }

  std::int64_t work_size(std::int64_t rows) const override {
    return is_copy_ ? 0 : tile_of(rows) * per_image_;
  }

 protected:
  // Images of a tile.
  std::int64_t tile_of(std::int64_t rows) const {
    if (is_copy_) return rows;
    return std::min(rows, std::max<std::int64_t>(1, kColumns / per_image_));
  }
  bool is_one_tile(std::int64_t rows) const { return tile_of(rows) == rows; }

  // Calls body(large images, small images, columns) for each tile of a batch of both.
  template <class Body>
  void for_tiles(const Context& context, const Tensor& large, const Tensor& small, const Body& body) const {
    const std::int64_t tile = tile_of(large.rows);
    for (std::int64_t first = 0; first < large.rows; first += tile) {
      const std::int64_t count = std::min(tile, large.rows - first);
      body(pixels(large.slice_rows(first, count), large_), pixels(small.slice_rows(first, count), small_),
           shaped(is_copy_ ? large : context.work, count * windows_.per_image(), windows_.size()));
    }
  }

  // The small images, or their errors, from the columns of the large ones: columns W'.
  void gather(const Context& context, const Tensor& large, const Tensor& small, bool is_unfolded,
              const Shape& seen, const Epilogue& epilogue) const {
    const bool fused = is_one_tile(large.rows) && seen == small_;
    for_tiles(context, large, small, [&](const Tensor& images, const Tensor& out, const Tensor& columns) {
      if (!is_unfolded && !is_copy_) context.backend.unfold(windows_, images, columns);
      context.backend.product({columns}, {*weight, true}, out, false, fused ? epilogue.kernel : nullptr,
                              fused ? epilogue.sums : Sums{});
    });
    if (!fused) finish(context.backend, pixels(small, seen), epilogue);
  }

  // The large images, or their errors: the columns that the small ones times W make, added up.
  void scatter(const Context& context, const Tensor& small, const Tensor& large, const Shape& seen,
               const Epilogue& epilogue) const {
    if (is_copy_) {
      const Tensor columns = shaped(large, small.rows * windows_.per_image(), windows_.size());
      const bool fused = seen.channels == windows_.size();
      context.backend.product({pixels(small, small_)}, {*weight}, columns, false,
                              fused ? epilogue.kernel : nullptr, fused ? epilogue.sums : Sums{});
      if (!fused) finish(context.backend, pixels(large, seen), epilogue);
      return;
    }
    const bool fused = is_one_tile(large.rows) && seen == large_;
    for_tiles(context, large, small, [&](const Tensor& images, const Tensor& in, const Tensor& columns) {
      context.backend.product({in}, {*weight}, columns, false, nullptr, {});
      context.backend.fold(windows_, columns, images, fused ? epilogue.kernel : nullptr,
                           fused ? epilogue.sums : Sums{});
    });
    if (!fused) finish(context.backend, pixels(large, seen), epilogue);
  }

  // The gradient of W: small' columns.
  void add_gradient(const Context& context, const Tensor& large, const Tensor& small, bool is_unfolded,
                    bool accumulate, const Epilogue& finish) const {
    const std::int64_t tiles = (large.rows + tile_of(large.rows) - 1) / tile_of(large.rows);
    std::int64_t done = 0;
    for_tiles(context, large, small, [&](const Tensor& images, const Tensor& maps, const Tensor& columns) {
      if (!is_unfolded && !is_copy_) context.backend.unfold(windows_, images, columns);
      const bool last = ++done == tiles;
      context.backend.product({maps, true}, {columns}, *gradient, accumulate || done > 1,
                              last ? finish.kernel : nullptr, last ? finish.sums : Sums{});
    });
  }

 private:
  const Shape large_, small_;
  const Windows windows_;
  const std::int64_t per_image_;
  const bool is_copy_;  // the columns are the images' own memory
};

// The columns of the input stay from forward() to weight_gradient(); backward() overwrites them.
class Convolution final : public Unfolding {
 public:
  explicit Convolution(const LayerSpec& spec) : Unfolding(spec, spec.in, spec.out) {}

  void forward(const Context& context, Tensor in, Tensor out, const Epilogue& epilogue) const override {
    gather(context, in, out, false, spec_.out, epilogue);
  }
  void backward(const Context& context, Tensor delta, Tensor out, const Epilogue& epilogue) const override {
    scatter(context, delta, out, spec_.below, epilogue);
  }
  void weight_gradient(const Context& context, Tensor in, Tensor delta, bool accumulate,
                       const Epilogue& finish) const override {
    add_gradient(context, in, delta, is_one_tile(in.rows), accumulate, finish);
  }
};

// The columns of the delta stay from weight_gradient() to backward().
class TransposedConvolution final : public Unfolding {
 public:
  explicit TransposedConvolution(const LayerSpec& spec) : Unfolding(spec, spec.out, spec.in) {}

  void forward(const Context& context, Tensor in, Tensor out, const Epilogue& epilogue) const override {
    scatter(context, in, out, spec_.out, epilogue);
  }
  void backward(const Context& context, Tensor delta, Tensor out, const Epilogue& epilogue) const override {
    gather(context, delta, out, is_one_tile(delta.rows), spec_.below, epilogue);
  }
  void weight_gradient(const Context& context, Tensor in, Tensor delta, bool accumulate,
                       const Epilogue& finish) const override {
    add_gradient(context, delta, in, false, accumulate, finish);
  }
};

}  // namespace

std::unique_ptr<Layer> make_convolution(const LayerSpec& spec) { return std::make_unique<Convolution>(spec); }

std::unique_ptr<Layer> make_transposed_convolution(const LayerSpec& spec) {
  return std::make_unique<TransposedConvolution>(spec);
}

}  // namespace fastsae
