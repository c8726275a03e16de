// Products on tensor cores with the kernel in their epilogue. The sums are compiled once for each tile, and the
// epilogues follow by number: a main loop for each kernel of the list would take minutes.
#include <cstring>

#include "kernels/list.h"
#include "parts.cuh"
#include "passes.h"
#include "tensor_blocks.h"
#include "tensor_cores.h"

namespace fastsae::cuda {
namespace {

using Epilogues = Concat<KernelList, TypeList<Keep<float>>>;

// Calls run with a null pointer to the index-th type, if products of floats end with it.
template <class... Ks, class Run>
__device__ __forceinline__ void with_epilogue(TypeList<Ks...>, int index, const Run& run) {
  int at = 0;
  const auto consider = [&](auto* type) {
    using K = std::remove_pointer_t<decltype(type)>;
    if constexpr (sizeof(typename K::Scalar) == sizeof(float) && fuses<K>) {
      if (at == index) run(type);
    }
    ++at;
  };
  (consider(static_cast<Ks*>(nullptr)), ...);
}

// Both formats in one kernel, so that their epilogues are one.
template <class Shape>
__global__ void __launch_bounds__(Shape::members)
    tensor_kernel(const __grid_constant__ Kernel kernel, Strided<float> a, Strided<float> b,
                  std::int64_t inner, bool bf16, bool accumulate, Out<float> out, std::int64_t rows,
                  std::int64_t cols, double* partial) {
  __shared__ TensorShared<Shape> shared;
  BlockTeam<TensorState<Shape>> team;
  const Tile tile{std::int64_t{blockIdx.x} * Shape::tile, std::int64_t{blockIdx.y} * Shape::tile, rows, cols};
  if (bf16)
    sum_tile<Bf16Cores, Shape>(team, a, b, inner, tile, shared);
  else
    sum_tile<Tf32Cores, Shape>(team, a, b, inner, tile, shared);
  with_epilogue(Epilogues{}, kernel.index, [&](auto* type) {
    using K = std::remove_pointer_t<decltype(type)>;
    K epilogue;
    std::memcpy(&epilogue, kernel.bytes, sizeof(K));
    double* own = partial == nullptr ? nullptr : partial + std::int64_t{blockIdx.x} * K::sums * cols;
    finish_tile<K, Shape>(team, epilogue, accumulate, out, tile, shared, own);
  });
}

template <class Shape>
void launch(const ProductCall& call, bool bf16, const Kernel& kernel, double* partial, cudaStream_t stream) {
  // Rows along x, which alone may have more than 65535 blocks.
  const dim3 grid(blocks_of(call.out.rows, Shape::tile), blocks_of(call.out.cols, Shape::tile));
  tensor_kernel<Shape><<<grid, Shape::members, 0, stream>>>(
      kernel, strided<float>(call.a, true), strided<float>(call.b, false), call.a.cols(), bf16,
      call.accumulate, Out<float>(call.out), call.out.rows, call.out.cols, partial);
  FS_CUDA(cudaGetLastError());
}

}  // namespace

void launch_tensor_product(const ProductCall& call, Means means, Precision precision, const Kernel* kernel,
                           double* partial, cudaStream_t stream) {
  Kernel last{};
  if (kernel != nullptr)
    last = *kernel;
  else
    last.index = static_cast<std::uint16_t>(KernelList::size);  // Keep
  const auto chosen = means == Means::large_tiles ? launch<LargeTile> : launch<SmallTile>;
  chosen(call, precision == Precision::bf16, last, partial, stream);
}

}  // namespace fastsae::cuda
