// Passes over a matrix without a product, and the small reductions.
#include <array>
#include <cstring>

#include "kernels/list.h"
#include "parts.cuh"
#include "passes.h"

namespace fastsae::cuda {
namespace {

template <class K>
__global__ void __launch_bounds__(MapShape::members)
    map_kernel(K kernel, Out<typename K::Scalar> out, std::int64_t rows, std::int64_t cols, double* partial) {
  __shared__ MapShared<K> shared;
  BlockTeam<NoState> team;
  const Tile tile{std::int64_t{blockIdx.x} * MapShape::rows, std::int64_t{blockIdx.y} * MapShape::cols, rows,
                  cols};
  double* own = partial == nullptr ? nullptr : partial + std::int64_t{blockIdx.x} * K::sums * cols;
  map_block(team, kernel, out, tile, shared, own);
}

template <class K>
__global__ void __launch_bounds__(RowShape::members)
    row_kernel(K kernel, Out<typename K::Scalar> out, std::int64_t rows, std::int64_t cols, double* sums) {
  __shared__ RowShared<K> shared;
  BlockTeam<NoState> team;
  row_block(team, kernel, out, Tile{std::int64_t{blockIdx.x} * RowShape::rows, 0, rows, cols}, shared, sums);
}

using Launch = void (*)(const std::byte*, const Tensor&, double*, cudaStream_t);

template <class K>
void launch_one(const std::byte* bytes, const Tensor& out, double* sums, cudaStream_t stream) {
  using S = typename K::Scalar;
  K kernel;
  std::memcpy(&kernel, bytes, sizeof(K));
  if constexpr (K::pass == Pass::row_sum) {
    row_kernel<K><<<blocks_of(out.rows, RowShape::rows), RowShape::members, 0, stream>>>(
        kernel, Out<S>(out), out.rows, out.cols, sums);
  } else {
    // Rows along x, which alone may have more than 65535 blocks.
    const dim3 grid(blocks_of(out.rows, MapShape::rows), blocks_of(out.cols, MapShape::cols));
    map_kernel<K><<<grid, MapShape::members, 0, stream>>>(kernel, Out<S>(out), out.rows, out.cols, sums);
  }
  FS_CUDA(cudaGetLastError());
}

template <class List>
struct Table;
template <class... Ks>
struct Table<TypeList<Ks...>> {
  static constexpr std::array<Launch, sizeof...(Ks)> launch{launch_one<Ks>...};
};

__global__ void __launch_bounds__(TotalShape::members)
    total_kernel(View<const double> of, std::int64_t rows, std::int64_t cols, double scale, double* to) {
  __shared__ TotalShared shared;
  BlockTeam<NoState> team;
  total_block(team, of, rows, cols, scale, shared, to);
}

template <class S>
__global__ void fill_kernel(Out<S> to, std::int64_t rows, std::int64_t cols, S value) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < rows * cols) to.put(i / cols, i % cols, value);
}

template <class S>
__global__ void shadow_kernel(Out<S> of, std::int64_t rows, std::int64_t cols) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < rows * cols) of.put(i / cols, i % cols, of.at(i / cols, i % cols));
}

}  // namespace

void launch_map(const Kernel& kernel, Tensor out, Sums sums, double* partial, cudaStream_t stream) {
  const bool columns = kernel.pass == Pass::col_sum && sums.into.exists();
  double* target = columns ? partial : kernel.pass == Pass::row_sum ? sums.into.as<double>() : nullptr;
  Table<KernelList>::launch[kernel.index](kernel.bytes, out, target, stream);
  if (columns)
    launch_add_parts(partial, blocks_of(out.rows, MapShape::rows), kernel.sums * out.cols, sums, stream);
}

void launch_add_total(const Tensor& of, double scale, double* to, cudaStream_t stream) {
  total_kernel<<<1, TotalShape::members, 0, stream>>>(of.view<const double>(), of.rows, of.cols, scale, to);
  FS_CUDA(cudaGetLastError());
}

void launch_fill(const Tensor& to, double value, cudaStream_t stream) {
  with_scalar(to.dtype, [&](auto s) {
    using S = decltype(s);
    fill_kernel<<<blocks_of(to.size(), kThreads), kThreads, 0, stream>>>(Out<S>(to), to.rows, to.cols,
                                                                         static_cast<S>(value));
  });
  FS_CUDA(cudaGetLastError());
}

void launch_shadow(const Tensor& of, cudaStream_t stream) {
  with_scalar(of.dtype, [&](auto s) {
    using S = decltype(s);
    shadow_kernel<<<blocks_of(of.size(), kThreads), kThreads, 0, stream>>>(Out<S>(of), of.rows, of.cols);
  });
  FS_CUDA(cudaGetLastError());
}

}  // namespace fastsae::cuda
