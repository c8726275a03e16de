// The compiled device passes, one for each kernel of the list.
#pragma once

#include <cuda_runtime.h>

#include "backend/backend.h"
#include "choice.h"
#include "kernels/kernel.h"

namespace fastsae::cuda {

// The kernel on each element of out. `partial` has room for partial_doubles(); sums are complete when it returns.
void launch_map(const Kernel& kernel, Tensor out, Sums sums, double* partial, cudaStream_t stream);
// out = A B (+ out)
struct ProductCall {
  Factor a, b;
  Tensor out;
  bool accumulate;
};
// The product by our own means, then the kernel (or nothing).
void launch_product(const ProductCall& call, Means means, Precision precision, const Kernel* kernel,
                    Sums sums, double* partial, cudaStream_t stream);
// That on tensor cores; `partial` gets sums of each row of tiles.
void launch_tensor_product(const ProductCall& call, Means means, Precision precision, const Kernel* kernel,
                           double* partial, cudaStream_t stream);
// Whether the list of products has this kernel; others are a product and then a pass.
bool has_product(const Kernel* kernel);
// Doubles of scratch that the sums of a pass or a product over `out` need.
std::size_t partial_doubles(const Kernel* kernel, const Tensor& out);

void launch_add_total(const Tensor& of, double scale, double* to, cudaStream_t stream);
void launch_fill(const Tensor& to, double value, cudaStream_t stream);
// Brings the shadow of a tensor up to date.
void launch_shadow(const Tensor& of, cudaStream_t stream);

}  // namespace fastsae::cuda
