// Who computes a matrix product: our own kernels, or the BLAS. The choice depends on the shape and the types alone.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "cpu/panels.h"

namespace fastsae::cpu {

enum class Provider : std::uint8_t { blas, panels, bf16 };

// By the measured table of provider_table.h. FASTSAE_PRODUCTS=blas|panels names one for all; where our kernels do not run
// it is the BLAS.
Provider provider_for(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                      DType dtype);

// The whole product on the calling thread.
template <class S>
void multiply(Provider provider, const Product<S>& product);

}  // namespace fastsae::cpu
