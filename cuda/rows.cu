// Rows that a caller left in the device's memory.
#include "kernels/list.h"
#include "parts.cuh"
#include "passes.h"
#include "rows.h"

namespace fastsae::cuda {
namespace {

template <class From, class S>
__global__ void __launch_bounds__(GatherShape::members)
    gather_kernel(OrderedRows<From> from, Out<S> out, std::int64_t rows, std::int64_t cols) {
  BlockTeam<NoState> team;
  gather_block(team, from, out, Tile{std::int64_t{blockIdx.x} * GatherShape::rows, 0, rows, cols});
}

template <class From>
__global__ void __launch_bounds__(SearchShape::members)
    search_kernel(OrderedRows<From> from, double low, double high, std::int64_t rows, std::int64_t cols,
                  std::int64_t* found) {
  __shared__ SearchShared shared;
  BlockTeam<NoState> team;
  search_block(team, from, low, high, Tile{std::int64_t{blockIdx.x} * SearchShape::rows, 0, rows, cols},
               shared, found + blockIdx.x);
}

}  // namespace

void launch_gather(const RowSource& source, const std::int64_t* order, const Tensor& out,
                   cudaStream_t stream) {
  with_element(source.dtype, [&](auto element) {
    using From = decltype(element);
    with_scalar(out.dtype, [&](auto s) {
      using S = decltype(s);
      gather_kernel<From, S><<<blocks_of(out.rows, GatherShape::rows), GatherShape::members, 0, stream>>>(
          OrderedRows<From>(source, order), Out<S>(out), out.rows, out.cols);
    });
  });
  FS_CUDA(cudaGetLastError());
}

std::int64_t search_blocks(const RowSource& source) { return blocks_of(source.rows, SearchShape::rows); }

void launch_search(const RowSource& source, double low, double high, std::int64_t* found,
                   cudaStream_t stream) {
  with_element(source.dtype, [&](auto element) {
    using From = decltype(element);
    search_kernel<From><<<blocks_of(source.rows, SearchShape::rows), SearchShape::members, 0, stream>>>(
        OrderedRows<From>(source, nullptr), low, high, source.rows, source.cols, found);
  });
  FS_CUDA(cudaGetLastError());
}

}  // namespace fastsae::cuda
