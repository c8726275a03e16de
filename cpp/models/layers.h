// The layers of models/layered.cpp: a linear map that a Backend computes, and the kernels of its activation.
// Another kind of layer (a convolution, a stochastic code) has the same four operations.
#pragma once

#include <memory>
#include <string>

#include "backend/backend.h"
#include "kernels/list.h"
#include "models/model.h"

namespace fastsae {

// The kernels of one layer, chosen once by name; the calls only fill in pointers and scalars.
struct LayerKernels {
  Kernel (*infer)(const Tensor& bias);
  Kernel (*activate)(const Tensor& bias, const Tensor& weight);
  Kernel (*delta)(const Tensor& activation, const Tensor& weight, const Tensor& column,
                  const StepScalars* step, double beta);
  // null unless the activation is bounded
  Kernel (*kl_column)(const Tensor& sums, const Tensor& rho_hat, const Tensor& next_rho_hat,
                      const StepScalars* step, double rho, double beta);
};
LayerKernels choose_layer_kernels(DType dtype, const std::string& activation, const std::string& penalty);

struct OutputKernels {
  Kernel (*delta)(const Tensor& bias, const Tensor& weight, const Tensor& target, const StepScalars* step,
                  double factor);
  Kernel (*row_loss)(const Tensor& bias, const Tensor& target);
};
OutputKernels choose_output_kernels(DType dtype, const std::string& activation, const std::string& loss);

// out = x W' with W of [units x inputs], or of [inputs x units] where the weights are those of a tied layer.
class Linear {
 public:
  Linear(std::int64_t inputs, std::int64_t units) : inputs_(inputs), units_(units) {}

  void declare(Arena& parameters, Arena& gradients, DType dtype, int number, bool shadowed,
               const Linear* tied_to);

  void forward(Backend& backend, Tensor in, Tensor out, const Kernel& kernel, Sums sums = {}) const {
    backend.product({in}, {*weight, !tied_}, out, false, &kernel, sums);
  }
  // The error sent back to the input, before the previous layer's slope: the kernel applies that.
  void backward(Backend& backend, Tensor delta, Tensor out, const Kernel& kernel, Sums sums) const {
    backend.product({delta}, {*weight, tied_}, out, false, &kernel, sums);
  }
  // Adds this chunk's weight gradient; `finish` is the kernel of the last addition, or null.
  void weight_gradient(Backend& backend, Tensor in, Tensor delta, bool accumulate, const Kernel* finish,
                       Sums sums) const {
    if (tied_)
      backend.product({in, true}, {delta}, *gradient, accumulate, finish, sums);
    else
      backend.product({delta, true}, {in}, *gradient, accumulate, finish, sums);
  }

  bool tied() const { return tied_; }
  std::int64_t inputs() const { return inputs_; }
  std::int64_t units() const { return units_; }

  Tensor* weight = nullptr;
  Tensor* gradient = nullptr;
  Tensor* bias = nullptr;           // [1 x units]
  Tensor* bias_gradient = nullptr;  // [1 x units]

 private:
  std::int64_t inputs_, units_;
  bool tied_ = false;
};

}  // namespace fastsae
