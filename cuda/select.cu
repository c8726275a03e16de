// Selection from a tile of scores.
#include "kernels/list.h"
#include "parts.cuh"
#include "passes.h"
#include "select.h"

namespace fastsae::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(SelectShape::members, SelectShape::resident)
    select_kernel(const S* scores, std::int64_t stride, std::int32_t first, std::int32_t cols, const S* scale,
                  Out<S> values, View<std::int32_t> indices, std::int32_t k, bool by_column) {
  __shared__ SelectShared<S> shared;
  BlockTeam<SelectState<S>> team;
  const std::int64_t row = blockIdx.x;
  select_row(team, ScoreRow<S>{scores + row * stride, first, cols, scale},
             SelectedRow<S>{values, indices, row, k, by_column}, shared);
}

}  // namespace

void launch_select(const Tensor& scores, std::int64_t first, const Selection& part, cudaStream_t stream) {
  with_scalar(scores.dtype, [&](auto s) {
    using S = decltype(s);
    select_kernel<S><<<blocks_of(scores.rows, 1), SelectShape::members, 0, stream>>>(
        scores.as<S>(), scores.stride, static_cast<std::int32_t>(first),
        static_cast<std::int32_t>(scores.cols), part.scale.as<S>(), Out<S>(part.values),
        part.indices.view<std::int32_t>(), static_cast<std::int32_t>(part.values.cols), part.by_column);
  });
  FS_CUDA(cudaGetLastError());
}

}  // namespace fastsae::cuda
