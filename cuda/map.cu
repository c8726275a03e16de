// Passes over a matrix without a product, and the small reductions.
#include <algorithm>
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
  row_block(team, kernel, out, Tile{std::int64_t{blockIdx.x} * RowShape::rows(cols), 0, rows, cols}, shared,
            sums);
}

// Several tensors in one launch: each block looks up which of them it is of.
template <class K>
struct Group {
  static constexpr int capacity = 12;
  struct Item {
    K kernel;
    View<typename K::Scalar> view;
    Bf16* shadow;
    std::int64_t rows, cols;
    unsigned first_block;
  };
  Item items[capacity];
  int count = 0;
};

template <class K>
__global__ void __launch_bounds__(MapShape::members) group_kernel(const __grid_constant__ Group<K> group) {
  __shared__ MapShared<K> shared;
  BlockTeam<NoState> team;
  int i = group.count - 1;
  while (blockIdx.x < group.items[i].first_block) --i;
  const auto& item = group.items[i];
  const std::int64_t block = blockIdx.x - item.first_block;
  const std::int64_t wide = (item.cols + MapShape::cols - 1) / MapShape::cols;
  const Tile tile{block / wide * MapShape::rows, block % wide * MapShape::cols, item.rows, item.cols};
  map_block(team, item.kernel, Out<typename K::Scalar>(item.view, item.shadow), tile, shared, nullptr);
}

using Launch = void (*)(const std::byte*, const Tensor&, double*, cudaStream_t);

template <class K>
void launch_one(const std::byte* bytes, const Tensor& out, double* sums, cudaStream_t stream) {
  using S = typename K::Scalar;
  K kernel;
  std::memcpy(&kernel, bytes, sizeof(K));
  if constexpr (K::pass == Pass::row_sum) {
    row_kernel<K><<<blocks_of(out.rows, RowShape::rows(out.cols)), RowShape::members, 0, stream>>>(
        kernel, Out<S>(out), out.rows, out.cols, sums);
  } else {
    // Rows along x, which alone may have more than 65535 blocks.
    const dim3 grid(blocks_of(out.rows, MapShape::rows), blocks_of(out.cols, MapShape::cols));
    map_kernel<K><<<grid, MapShape::members, 0, stream>>>(kernel, Out<S>(out), out.rows, out.cols, sums);
  }
  FS_CUDA(cudaGetLastError());
}

template <class K>
void launch_group(std::span<const Mapped> items, cudaStream_t stream) {
  using S = typename K::Scalar;
  while (!items.empty()) {
    Group<K> group;
    unsigned blocks = 0;
    const std::size_t count = std::min<std::size_t>(items.size(), Group<K>::capacity);
    for (const Mapped& from : items.first(count)) {
      auto& item = group.items[group.count++];
      std::memcpy(&item.kernel, from.kernel.bytes, sizeof(K));
      item.view = from.out.view<S>();
      item.shadow = static_cast<Bf16*>(from.out.shadow);
      item.rows = from.out.rows;
      item.cols = from.out.cols;
      item.first_block = blocks;
      blocks += blocks_of(item.rows, MapShape::rows) * blocks_of(item.cols, MapShape::cols);
    }
    group_kernel<K><<<blocks, MapShape::members, 0, stream>>>(group);
    FS_CUDA(cudaGetLastError());
    items = items.subspan(count);
  }
}

// Only updates of parameters are grouped: null elsewhere.
template <class K>
constexpr bool is_update = false;
template <class S, class Step>
constexpr bool is_update<Update<S, Step>> = true;

using LaunchGroup = void (*)(std::span<const Mapped>, cudaStream_t);
template <class K>
constexpr LaunchGroup group_of() {
  if constexpr (is_update<K>)
    return launch_group<K>;
  else
    return nullptr;
}

template <class List>
struct Table;
template <class... Ks>
struct Table<TypeList<Ks...>> {
  static constexpr std::array<Launch, sizeof...(Ks)> launch{launch_one<Ks>...};
  static constexpr std::array<LaunchGroup, sizeof...(Ks)> group{group_of<Ks>()...};
};

struct Totals {
  static constexpr int capacity = 24;
  struct Item {
    View<const double> of;
    std::int64_t rows, cols;
    double scale;
    double* to;
  };
  Item items[capacity];
  int count = 0;
};

// One block, so that numbers which several tensors are added to get them in order.
__global__ void __launch_bounds__(TotalShape::members) total_kernel(const __grid_constant__ Totals totals) {
  __shared__ TotalShared shared;
  BlockTeam<NoState> team;
  for (int i = 0; i < totals.count; ++i) {
    const Totals::Item& x = totals.items[i];
    total_block(team, x.of, x.rows, x.cols, x.scale, shared, x.to);
  }
}

template <class S>
__global__ void fill_kernel(Out<S> to, std::int64_t rows, std::int64_t cols, S value) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < rows * cols) to.put(i / cols, i % cols, value);
}

template <class S>
__global__ void shadow_kernel(Out<S> of, std::int64_t rows, std::int64_t cols) {
  const std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < rows * cols) of.cast(i / cols, i % cols, of.at(i / cols, i % cols));
}

}  // namespace

void launch_map(const Kernel& kernel, Tensor out, Sums sums, double* partial, cudaStream_t stream) {
  const bool columns = kernel.pass == Pass::col_sum && sums.into.exists();
  // The sums of a single row of blocks are complete at once.
  const bool parts = columns && (out.rows > MapShape::rows || sums.accumulate);
  double* into = kernel.pass == Pass::each ? nullptr : sums.into.as<double>();
  Table<KernelList>::launch[kernel.index](kernel.bytes, out, parts ? partial : into, stream);
  if (parts)
    launch_add_parts(partial, blocks_of(out.rows, MapShape::rows), kernel.sums * out.cols, sums, stream);
}

void launch_map_each(std::span<const Mapped> items, cudaStream_t stream) {
  if (items.empty()) return;
  if (const LaunchGroup grouped = Table<KernelList>::group[items.front().kernel.index])
    return grouped(items, stream);
  for (const Mapped& item : items) launch_map(item.kernel, item.out, {}, nullptr, stream);
}

void launch_add_totals(std::span<const Total> totals, cudaStream_t stream) {
  while (!totals.empty()) {
    Totals group;
    const std::size_t count = std::min<std::size_t>(totals.size(), Totals::capacity);
    for (const auto& [of, scale, to] : totals.first(count))
      group.items[group.count++] = {of.view<const double>(), of.rows, of.cols, scale, to};
    total_kernel<<<1, TotalShape::members, 0, stream>>>(group);
    FS_CUDA(cudaGetLastError());
    totals = totals.subspan(count);
  }
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
