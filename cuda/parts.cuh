// Adding up the partial sums of a grid, and running the jobs of jobs.h.
#pragma once

#include "blocks.h"
#include "check.h"
#include "jobs.h"
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

template <class Job>
__global__ void __launch_bounds__(Job::members) job_kernel(const __grid_constant__ Job job) {
  __shared__ typename Job::Shared shared;
  BlockTeam<typename Job::State> team;
  job(team, shared, std::int64_t{blockIdx.x});
}

struct JobLaunch {
  cudaStream_t stream;
  template <class Job>
  void operator()(const Job& job, std::int64_t blocks) const {
    if (blocks == 0) return;
    job_kernel<Job><<<static_cast<unsigned>(blocks), Job::members, 0, stream>>>(job);
    FS_CUDA(cudaGetLastError());
  }
};

}  // namespace fastsae::cuda
