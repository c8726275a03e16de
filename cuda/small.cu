// Many steps of a small model in one launch of one block.
#include "check.h"
#include "passes.h"
#include "small.h"

namespace fastsae::cuda {
namespace {

// What a launch may be given on every driver.
static_assert(sizeof(SmallModel) + sizeof(SmallLayout) + sizeof(SmallBatches) <= 4096);

template <class S>
__global__ void __launch_bounds__(SmallTeam::members, 1)
    small_kernel(const __grid_constant__ SmallModel model, const __grid_constant__ SmallLayout layout,
                 const __grid_constant__ SmallBatches batches) {
  extern __shared__ __align__(16) std::byte memory[];  // read by fours
  using Steps = SmallSteps<S>;
  BlockTeam<typename Steps::State> team;
  Steps(model, layout, batches, memory).run(team);
}

}  // namespace

void launch_small(const SmallModel& model, const SmallBatches& batches, int most_shared,
                  cudaStream_t stream) {
  const SmallLayout layout(model, batches.rows);
  const auto bytes = static_cast<std::size_t>(layout.bytes);
  with_scalar(model.dtype(), [&](auto s) {
    const auto kernel = small_kernel<decltype(s)>;
    // One limit for all engines of the process: a smaller one might come between another's and its launch.
    FS_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared));
    kernel<<<1, SmallTeam::members, bytes, stream>>>(model, layout, batches);
  });
  FS_CUDA(cudaGetLastError());
}

}  // namespace fastsae::cuda
