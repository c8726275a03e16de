// Our own products with the kernel in their epilogue: the choice of them, and the plain ones.
#include <array>
#include <cstring>

#include "kernels/list.h"
#include "parts.cuh"
#include "passes.h"
#include "tensor_blocks.h"

namespace fastsae::cuda {
namespace {

template <class K, class S = typename K::Scalar>
__global__ void __launch_bounds__(ProductShape::members, 2)
    product_kernel(K kernel, Strided<S> a, Strided<S> b, std::int64_t inner, bool accumulate, Out<S> out,
                   std::int64_t rows, std::int64_t cols, double* partial) {
  __shared__ ProductShared<K> shared;
  BlockTeam<ProductState<S>> team;
  const Tile tile{std::int64_t{blockIdx.x} * ProductShape::tile,
                  std::int64_t{blockIdx.y} * ProductShape::tile, rows, cols};
  double* own = partial == nullptr ? nullptr : partial + std::int64_t{blockIdx.x} * K::sums * cols;
  product_block(team, kernel, a, b, inner, accumulate, out, tile, shared, own);
}

struct Arguments : ProductCall {
  double* partial;
  cudaStream_t stream;
};

template <class K>
void launch_with(const K& kernel, const Arguments& x) {
  using S = typename K::Scalar;
  // Rows along x, which alone may have more than 65535 blocks.
  const dim3 grid(blocks_of(x.out.rows, ProductShape::tile), blocks_of(x.out.cols, ProductShape::tile));
  product_kernel<K><<<grid, ProductShape::members, 0, x.stream>>>(
      kernel, strided<S>(x.a, true), strided<S>(x.b, false), x.a.cols(), x.accumulate, Out<S>(x.out),
      x.out.rows, x.out.cols, x.partial);
  FS_CUDA(cudaGetLastError());
}

using Launch = void (*)(const std::byte*, const Arguments&);

template <class K>
void launch_one(const std::byte* bytes, const Arguments& arguments) {
  K kernel;
  std::memcpy(&kernel, bytes, sizeof(K));
  launch_with(kernel, arguments);
}

// Elementwise passes never end a product, and row sums are left to the pass: null there.
template <class K>
constexpr Launch product_of() {
  if constexpr (fuses<K>)
    return launch_one<K>;
  else
    return nullptr;
}

template <class List>
struct Table;
template <class... Ks>
struct Table<TypeList<Ks...>> {
  static constexpr std::array<Launch, sizeof...(Ks)> launch{product_of<Ks>()...};
};

}  // namespace

bool has_product(const Kernel* kernel) {
  return kernel == nullptr || Table<KernelList>::launch[kernel->index] != nullptr;
}

void launch_product(const ProductCall& call, Means means, Precision precision, const Kernel* kernel,
                    Sums sums, double* partial, cudaStream_t stream) {
  const bool columns = kernel != nullptr && kernel->pass == Pass::col_sum && sums.into.exists();
  static_assert(LargeTile::tile == ProductShape::tile);
  const unsigned parts =
      blocks_of(call.out.rows, means == Means::small_tiles ? SmallTile::tile : ProductShape::tile);
  // The sums of a single row of tiles are complete at once.
  const bool whole = parts == 1 && !sums.accumulate;
  double* into = !columns ? nullptr : whole ? sums.into.as<double>() : partial;
  if (means != Means::plain)
    launch_tensor_product(call, means, precision, kernel, into, stream);
  else if (kernel == nullptr)
    with_scalar(call.out.dtype, [&](auto s) { launch_with(Keep<decltype(s)>{}, {call, into, stream}); });
  else
    Table<KernelList>::launch[kernel->index](kernel->bytes, {call, into, stream});
  if (columns && !whole) launch_add_parts(partial, parts, kernel->sums * call.out.cols, sums, stream);
}

std::size_t partial_doubles(const Kernel* kernel, const Tensor& out) {
  if (kernel == nullptr || kernel->pass != Pass::col_sum) return 0;
  // The lowest tiles have the most parts.
  return static_cast<std::size_t>(blocks_of(out.rows, SmallTile::tile)) * kernel->sums * out.cols;
}

}  // namespace fastsae::cuda
