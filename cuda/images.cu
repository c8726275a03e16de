// Windows over images.
#include "images.h"
#include "kernels/list.h"
#include "parts.cuh"
#include "passes.h"

namespace fastsae::cuda {
namespace {

template <class S>
__global__ void __launch_bounds__(WindowShape::members)
    unfold_kernel(const __grid_constant__ Windows windows, const S* images, Out<S> columns, std::int64_t rows,
                  std::int64_t cols, int each) {
  __shared__ UnfoldShared shared;
  BlockTeam<NoState> team;
  const Tile tile{std::int64_t{blockIdx.x} * each, 0, rows, cols};
  unfold_block(team, windows, images, columns, tile, each, shared);
}

template <class S>
__global__ void __launch_bounds__(WindowShape::members)
    fold_kernel(const __grid_constant__ Windows windows, View<const S> columns, Out<S> images,
                std::int64_t rows, std::int64_t cols, int each) {
  __shared__ FoldShared shared;
  BlockTeam<NoState> team;
  const Tile tile{std::int64_t{blockIdx.x} * each, 0, rows, cols};
  fold_block(team, windows, columns, images, tile, each, shared);
}

}  // namespace

void launch_unfold(const Windows& windows, const Tensor& images, const Tensor& columns, cudaStream_t stream) {
  const int each = WindowShape::rows(columns.cols);
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    unfold_kernel<S><<<blocks_of(columns.rows, each), WindowShape::members, 0, stream>>>(
        windows, images.as<S>(), Out<S>(columns), columns.rows, columns.cols, each);
  });
  FS_CUDA(cudaGetLastError());
}

void launch_fold(const Windows& windows, const Tensor& columns, const Tensor& images, cudaStream_t stream) {
  const int each = WindowShape::rows(images.cols);
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    fold_kernel<S><<<blocks_of(images.rows, each), WindowShape::members, 0, stream>>>(
        windows, columns.view<const S>(), Out<S>(images), images.rows, images.cols, each);
  });
  FS_CUDA(cudaGetLastError());
}

}  // namespace fastsae::cuda
