// Sparse codes: what is done with their latents.
#include "kernels/list.h"
#include "latents.h"
#include "parts.cuh"
#include "passes.h"

namespace fastsae::cuda {
namespace {

// Two blocks at least have room: without a word the compiler takes fewer registers than sums in double need.
template <class S, class Job>
__global__ void __launch_bounds__(LatentWork<S>::members, 2)
    latent_kernel(const __grid_constant__ Job job, std::byte* spare, std::int64_t bytes) {
  extern __shared__ __align__(16) std::byte memory[];
  __shared__ SumShared<2> shared;
  BlockTeam<NoState> team;
  std::byte* own = spare == nullptr ? memory : spare + std::int64_t{blockIdx.x} * bytes;
  latents_block(team, job, shared, std::int64_t{blockIdx.x}, std::int64_t{gridDim.x},
                reinterpret_cast<S*>(own));
}

struct LatentLaunch {
  const LatentMemory& memory;
  cudaStream_t stream;
  template <class S, class Job>
  void operator()(S, const Job& job) const {
    latent_kernel<S, Job><<<static_cast<unsigned>(memory.blocks()), LatentWork<S>::members,
                            memory.in_shared() ? memory.bytes : 0, stream>>>(
        job, static_cast<std::byte*>(memory.spare), static_cast<std::int64_t>(memory.bytes));
    FS_CUDA(cudaGetLastError());
  }
};

}  // namespace

void launch_measure_latents(const LatentRows& rows, const Tensor& squares, const Tensor& sums,
                            const LatentMemory& memory, cudaStream_t stream) {
  measure_all(JobLaunch{stream}, LatentLaunch{memory, stream}, rows, squares, sums);
}

void launch_write_latents(const LatentRows& rows, const Tensor& encoder, const Tensor& decoder,
                          const LatentMemory& memory, cudaStream_t stream) {
  write_all(LatentLaunch{memory, stream}, rows, encoder, decoder);
}

void launch_update_latents(const LatentRows& rows, const LatentUpdate& update, const LatentMemory& memory,
                           cudaStream_t stream) {
  update_all(LatentLaunch{memory, stream}, rows, update);
}

}  // namespace fastsae::cuda
