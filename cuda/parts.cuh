// Adding up the partial sums of a grid.
#pragma once

#include "blocks.h"
#include "check.h"
#include "kernels/kernel.h"

namespace fastsae::cuda {

inline constexpr int kThreads = 256;

inline unsigned blocks_of(std::int64_t items, std::int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

static __global__ void add_parts_kernel(const double* partial, std::int64_t parts, std::int64_t count,
                                        bool accumulate, double* into) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) add_parts(i, partial, parts, count, accumulate, into);
}

inline void launch_add_parts(const double* partial, std::int64_t parts, std::int64_t count, const Sums& sums,
                             cudaStream_t stream) {
  add_parts_kernel<<<blocks_of(count, kThreads), kThreads, 0, stream>>>(
      partial, parts, count, sums.accumulate, sums.into.as<double>());
  FS_CUDA(cudaGetLastError());
}

}  // namespace fastsae::cuda
