// Which way a product is computed: a function of its shape and of what there is, so that the same product is always
// computed in the same way.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/backend.h"

namespace fastsae::cuda {

enum class Means : std::uint8_t { plain, small_tiles, large_tiles, cublaslt };

struct ProductTraits {
  std::int64_t rows, cols, inner;
  DType dtype;
  bool shadows;  // both factors have one
};

// Up to here our own kernels save a pass over the output; beyond, the library is nearer to the peak.
inline constexpr std::int64_t kOwnLargest = 1024;
// Up to here, in multiply-adds, plain tiles are not far behind it: they wait on memory, slab after slab.
inline constexpr std::int64_t kPlainLargest = std::int64_t{1} << 22;
// As many large tiles as the largest GPUs have multiprocessors, nearly.
inline constexpr std::int64_t kEnoughTiles = 100;

inline Means choose_product(const ProductTraits& x, Precision precision, bool has_cublaslt) {
  const bool full = precision == Precision::full || x.dtype != DType::f32;
  const bool library = has_cublaslt && (full || precision == Precision::tf32 || x.shadows);
  const bool long_side = std::max({x.rows, x.cols, x.inner}) > kOwnLargest;
  if (library && (long_side || (full && x.rows * x.cols * x.inner > kPlainLargest))) return Means::cublaslt;
  if (full) return Means::plain;
  const std::int64_t large_tiles = ((x.rows + 63) / 64) * ((x.cols + 63) / 64);
  return large_tiles >= kEnoughTiles ? Means::large_tiles : Means::small_tiles;
}

}  // namespace fastsae::cuda
