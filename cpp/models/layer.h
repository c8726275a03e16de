// A step on the way from the input to the output: what models/layered.cpp chains. Between layers a tensor is
// [rows x size of the shape]; with a kernel it is seen as [rows * positions x channels], so that a channel is a column.
#pragma once

#include <memory>
#include <vector>

#include "models/model.h"

namespace fastsae {

// What a layer works with in one pass over a batch.
struct Context {
  Backend& backend;
  Tensor work;         // of this layer, at least work_size(rows) elements; kept from forward to backward
  Tensor places = {};  // of the maxima of a pool, which chooses them, or of an unpooling, which reads them
  const StepMemory* step = nullptr;  // null in inference, where nothing is drawn
  const Batch* batch = nullptr;      // of the step
  bool first = true;                 // of the chunks whose sums are added up
};

// A kernel that may be missing, and where its sums go.
struct Epilogue {
  const Kernel* kernel = nullptr;
  Sums sums = {};
};

class Layer {
 public:
  explicit Layer(const LayerSpec& spec) : spec_(spec) {}
  virtual ~Layer() = default;

  // Layers with weights have all four tensors, the others none.
  virtual void declare(Arena& /*parameters*/, Arena& /*gradients*/, DType /*dtype*/, bool /*shadowed*/,
                       const Layer* /*tied_to*/) {}
  virtual void declare_scratch(Arena& /*scratch*/, DType /*dtype*/) {}
  virtual std::int64_t work_size(std::int64_t /*rows*/) const { return 0; }
  // Elements that this and a later layer of the same pass read.
  virtual std::int64_t places_size(std::int64_t /*rows*/) const { return 0; }

  // Before the bias and the activation, which are the epilogue's.
  virtual void forward(const Context& context, Tensor in, Tensor out, const Epilogue& epilogue) const = 0;
  // The error sent back to the input, before the slope of the layer below, which is the epilogue's.
  virtual void backward(const Context& context, Tensor delta, Tensor out, const Epilogue& epilogue) const = 0;
  // Adds this chunk's weight gradient; comes before backward(). The epilogue is that of the last addition.
  virtual void weight_gradient(const Context& /*context*/, Tensor /*in*/, Tensor /*delta*/,
                               bool /*accumulate*/, const Epilogue& /*finish*/) const {}

  // A cost of the layer's own, as the sparsity penalty has: means over all chunks, then slopes, then the value.
  virtual bool needs_means() const { return false; }
  virtual void finish_means(Backend& /*backend*/, const StepMemory& /*step*/) const {}
  virtual void add_cost(StepTotals* /*totals*/, std::vector<Total>& /*sums*/) const {}
  virtual bool draws_noise() const { return false; }

  const LayerSpec& spec() const { return spec_; }
  bool has_weights() const { return bias != nullptr; }
  bool tied() const { return tied_; }

  Tensor* weight = nullptr;
  Tensor* gradient = nullptr;
  Tensor* bias = nullptr;           // [1 x channels]
  Tensor* bias_gradient = nullptr;  // [1 x channels]

 protected:
  // W and b of [weight_rows x weight_cols] and [1 x channels]; a tied layer has the other's W.
  void declare_weights(Arena& parameters, Arena& gradients, DType dtype, bool shadowed, const Layer* tied_to,
                       std::int64_t weight_rows, std::int64_t weight_cols);
  // A pass over what was computed without it.
  static void finish(Backend& backend, Tensor out, const Epilogue& epilogue) {
    if (epilogue.kernel != nullptr) backend.map(out, *epilogue.kernel, epilogue.sums);
  }

  const LayerSpec spec_;
  bool tied_ = false;
};

// The same memory as [rows * positions x channels].
inline Tensor pixels(const Tensor& rows, const Shape& shape) {
  if (shape.positions() == 1) return rows;
  return {rows.data, rows.rows * shape.positions(), shape.channels, shape.channels, rows.dtype, rows.shadow};
}

// Images with each pixel's channels side by side from images with one channel after the other, or the other way.
void reorder(Backend& backend, Tensor in, Tensor out, const Shape& shape, bool to_last);

// One for each kind:
//   dense                  units of W [units x inputs], or the transpose of a tied layer's
//   sampling               draws a code from the means and log-variances below it
//   channels_last, channels_first   changes the order of an image's elements
// and those of image_layers.h. A "reshape" is none: Layered reads the same memory as another shape.
std::unique_ptr<Layer> make_layer(const LayerSpec& spec);

}  // namespace fastsae
