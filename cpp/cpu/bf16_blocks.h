// How a product of bfloat16 factors is blocked, whatever multiplies the blocks, and its loop over hardware tiles.
//
// Both factors are packed in strips of 16 rows of A or columns of B, a strip in blocks of 32 along the inner dimension.
// A block is 1 KiB: of A 16 rows of 32 numbers, of B 16 lines, each with a pair of numbers, which follow each other
// along the inner dimension, for each of the 16 columns. What is missing at the edges is 0.
//
// An element of C is the sum over blocks in their order, which goes through C every kInner numbers. So nothing but
// the inner dimension decides about its bits.
#pragma once

#include <algorithm>
#include <cstdint>

#include "math/low_precision.h"

namespace fastsae::cpu {

inline constexpr std::int64_t kStrip = 16, kDepth = 32, kBlock = kStrip * kDepth;
inline constexpr std::int64_t kInner = 512;  // multiplied at once: a strip is 16 KiB
inline constexpr std::int64_t kRows = 128, kCols = 512;

// What one call packs: 640 KiB, which the second level cache holds.
struct PackedBf16 {
  alignas(64) Bf16 a[kRows * kInner];
  alignas(64) Bf16 b[kCols * kInner];
};

// Float numbers of 16 rows of A or columns of B, `count` of them present: number k of row i is at k + i * stride if
// lines go along the inner dimension, else at i + k * stride.
struct Lines {
  const float* data;
  std::int64_t stride;
  bool along;

  Lines at(std::int64_t i, std::int64_t k) const {
    return {data + (along ? k + i * stride : i + k * stride), stride, along};
  }
};

// Packed factors, with `strip` numbers from one strip to the next, and the rectangle of C that they make; `add` to what
// it holds.
struct BlockProduct {
  const Bf16 *a, *b;
  std::int64_t strip;
  std::int64_t rows, cols, inner;
  float* c;
  std::int64_t ldc;
  bool add;
};

// Numbers in a strip that is `depth` deep.
inline std::int64_t strip_size(std::int64_t depth) { return (depth + kDepth - 1) / kDepth * kBlock; }

// Rounds `count` lines by `depth` numbers into blocks, those of a strip one after the other. Lines that go across the
// inner dimension are read from end to end: a strip of them would take one piece out of each.
template <class Unit>
void pack_blocks(const Lines& lines, bool pairs, std::int64_t count, std::int64_t depth, Bf16* to) {
  const std::int64_t strips = (count + kStrip - 1) / kStrip, blocks = (depth + kDepth - 1) / kDepth;
  const auto pack = [&](std::int64_t strip, std::int64_t block) {
    const std::int64_t i = strip * kStrip, k = block * kDepth;
    Unit::pack(lines.at(i, k), pairs, std::min(kStrip, count - i), std::min(kDepth, depth - k),
               to + (strip * blocks + block) * kBlock);
  };
  const std::int64_t outer = lines.along ? strips : blocks, inner = lines.along ? blocks : strips;
  for (std::int64_t o = 0; o < outer; ++o) {
    for (std::int64_t i = 0; i < inner; ++i) lines.along ? pack(o, i) : pack(i, o);
  }
}

// A rectangle of a product whose factors are packed whole.
template <class Unit>
void multiply_packed(const BlockProduct& p) {
  const Unit unit;
  for (std::int64_t j = 0; j < p.cols; j += kCols) {
    for (std::int64_t l = 0; l < p.inner; l += kInner) {
      for (std::int64_t i = 0; i < p.rows; i += kRows) {
        const Bf16 *a = p.a + i / kStrip * p.strip + strip_size(l),
                   *b = p.b + j / kStrip * p.strip + strip_size(l);
        unit.multiply({a, b, p.strip, std::min(kRows, p.rows - i), std::min(kCols, p.cols - j),
                       std::min(kInner, p.inner - l), p.c + i * p.ldc + j, p.ldc, l > 0 || p.add});
      }
    }
  }
}

// A product whose factors are packed a piece at a time.
template <class Unit>
void multiply_packing(const Lines& left, const Lines& right, std::int64_t m, std::int64_t n, std::int64_t k,
                      bool add, float* c, std::int64_t ldc, PackedBf16& packed) {
  const Unit unit;
  for (std::int64_t j = 0; j < n; j += kCols) {
    const std::int64_t cols = std::min(kCols, n - j);
    for (std::int64_t l = 0; l < k; l += kInner) {
      const std::int64_t depth = std::min(kInner, k - l);
      pack_blocks<Unit>(right.at(j, l), true, cols, depth, packed.b);
      for (std::int64_t i = 0; i < m; i += kRows) {
        const std::int64_t rows = std::min(kRows, m - i);
        pack_blocks<Unit>(left.at(i, l), false, rows, depth, packed.a);
        unit.multiply(
            {packed.a, packed.b, strip_size(depth), rows, cols, depth, c + i * ldc + j, ldc, l > 0 || add});
      }
    }
  }
}

// Two strips of A times two of B, or one where only one is left, in the eight tiles that there are: 0 to 3 hold the
// sums, 4 and 5 blocks of A, 6 and 7 blocks of B.
template <class Tiles, bool kTwoA, bool kTwoB>
inline void multiply_tiles(const Tiles& tiles, const Bf16* a, const Bf16* b, std::int64_t strip,
                           std::int64_t blocks, float* c, std::int64_t ldc, bool add) {
  constexpr std::int64_t line = kDepth * sizeof(Bf16);
  const std::int64_t stride = ldc * static_cast<std::int64_t>(sizeof(float));
  const auto sums = [&](auto each) {
    each.template operator()<0>(c);
    if constexpr (kTwoB) each.template operator()<1>(c + kStrip);
    if constexpr (kTwoA) each.template operator()<2>(c + kStrip * ldc);
    if constexpr (kTwoA && kTwoB) each.template operator()<3>(c + kStrip * ldc + kStrip);
  };
  sums([&]<int kTile>(float* at) {
    if (add)
      tiles.template load<kTile>(at, stride);
    else
      tiles.template zero<kTile>();
  });
  for (std::int64_t block = 0; block < blocks; ++block, a += kBlock, b += kBlock) {
    tiles.template load<4>(a, line);
    tiles.template load<6>(b, line);
    tiles.template multiply<0, 4, 6>();
    if constexpr (kTwoB) tiles.template load<7>(b + strip, line);
    if constexpr (kTwoB) tiles.template multiply<1, 4, 7>();
    if constexpr (kTwoA) tiles.template load<5>(a + strip, line);
    if constexpr (kTwoA) tiles.template multiply<2, 5, 6>();
    if constexpr (kTwoA && kTwoB) tiles.template multiply<3, 5, 7>();
  }
  sums([&]<int kTile>(float* at) { tiles.template store<kTile>(at, stride); });
}

// All of a rectangle in such tiles; those that C does not hold whole go through a copy.
template <class Tiles>
void multiply_in_tiles(const Tiles& tiles, const BlockProduct& p) {
  constexpr std::int64_t kTwo = 2 * kStrip;
  const std::int64_t blocks = (p.inner + kDepth - 1) / kDepth;
  alignas(64) float edge[kTwo * kTwo];
  for (std::int64_t j = 0; j < p.cols; j += kTwo) {
    const std::int64_t cols = std::min(kTwo, p.cols - j);
    for (std::int64_t i = 0; i < p.rows; i += kTwo) {
      const std::int64_t rows = std::min(kTwo, p.rows - i);
      const bool two_a = rows > kStrip, two_b = cols > kStrip;
      float* const c = p.c + i * p.ldc + j;
      const bool whole = rows % kStrip == 0 && cols % kStrip == 0;
      float* const at = whole ? c : edge;
      const std::int64_t stride = whole ? p.ldc : kTwo;
      for (std::int64_t row = 0; !whole && p.add && row < rows; ++row)
        std::copy_n(c + row * p.ldc, cols, edge + row * kTwo);
      const auto multiply =
          two_a   ? two_b ? multiply_tiles<Tiles, true, true> : multiply_tiles<Tiles, true, false>
          : two_b ? multiply_tiles<Tiles, false, true>
                  : multiply_tiles<Tiles, false, false>;
      multiply(tiles, p.a + i / kStrip * p.strip, p.b + j / kStrip * p.strip, p.strip, blocks, at, stride,
               p.add);
      for (std::int64_t row = 0; !whole && row < rows; ++row)
        std::copy_n(edge + row * kTwo, cols, c + row * p.ldc);
    }
  }
}

}  // namespace fastsae::cpu
