// The kernels of a layer's bias, activation and penalty, and of the output's loss.
#pragma once

#include <string>

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
                      const StepScalars* step, double rho, double beta, double share);
};
LayerKernels choose_layer_kernels(DType dtype, const std::string& activation, const std::string& penalty);

struct OutputKernels {
  Kernel (*delta)(const Tensor& bias, const Tensor& weight, const Tensor& target, const StepScalars* step,
                  double factor);
  // `emphasis`: weights of the elements of the loss
  Kernel (*emphasised_delta)(const Tensor& bias, const Tensor& weight, const Tensor& target,
                             const Tensor& emphasis, const StepScalars* step, double factor);
  Kernel (*row_loss)(const Tensor& bias, const Tensor& target);
};
OutputKernels choose_output_kernels(DType dtype, const std::string& activation, const std::string& loss);

}  // namespace fastsae
