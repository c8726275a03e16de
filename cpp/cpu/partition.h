// How work is cut: by the shape alone, never by the number of threads, wherever a bit depends on it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastsae::cpu {

struct Range {
  std::int64_t begin, end;
};

// `count` items in `parts` ranges of whole multiples of `grain`.
struct Cut {
  std::int64_t count, parts, size;

  Cut(std::int64_t items, std::int64_t wanted_parts, std::int64_t grain)
      : count(items),
        size(std::max<std::int64_t>(grain, round_up((items + wanted_parts - 1) / wanted_parts, grain))) {
    parts = std::max<std::int64_t>(1, (items + size - 1) / size);
  }
  Range operator[](std::int64_t part) const { return {part * size, std::min(count, (part + 1) * size)}; }
  static std::int64_t round_up(std::int64_t value, std::int64_t grain) {
    return (value + grain - 1) / grain * grain;
  }
};

// `count` items in the fewest ranges of at most `most` each, or in `parts` ranges; they differ by one at most.
struct Even {
  std::int64_t count, parts;

  static Even at_most(std::int64_t count, std::int64_t most) { return {count, (count + most - 1) / most}; }
  Range operator[](std::int64_t part) const { return {count * part / parts, count * (part + 1) / parts}; }
  std::int64_t longest() const { return parts == 0 ? 0 : (count + parts - 1) / parts; }
};

// The output of a BLAS product in tiles, the longer side cut first. BLAS packs its factors again for each tile,
// which costs about 30 (1/m + 1/n) of the tile's time: four tiles are made where each has a million
// multiply-adds, and more only while that cost stays under 12 %.
struct Tiling {
  Cut rows, cols;

  static Tiling of(std::int64_t m, std::int64_t n, std::int64_t k) {
    std::int64_t row_parts = 1, col_parts = 1;
    for (;;) {
      const double tile_m = static_cast<double>(m) / row_parts, tile_n = static_cast<double>(n) / col_parts;
      const bool cut_rows = tile_m >= tile_n;
      const double next_m = cut_rows ? tile_m / 2 : tile_m, next_n = cut_rows ? tile_n : tile_n / 2;
      const bool few = row_parts * col_parts < 4 && next_m * next_n * static_cast<double>(k) >= 5e5;
      const bool cheap = 30 * (1 / next_m + 1 / next_n) <= 0.12;
      if ((cut_rows ? next_m : next_n) < kGrain || !(few || cheap)) break;
      (cut_rows ? row_parts : col_parts) *= 2;
    }
    return {Cut(m, row_parts, kGrain), Cut(n, col_parts, kGrain)};
  }
  std::int64_t count() const { return rows.parts * cols.parts; }

  static constexpr std::int64_t kGrain = 16;
};

// The inner dimension of a product with a small output and a long sum, as the gradient of a convolution's weights is:
// each part makes an output of its own, and they are added in order.
inline Cut inner_parts(std::int64_t m, std::int64_t n, std::int64_t k) {
  constexpr std::int64_t kLargest = 16384, kShortest = 1024, kMost = 16;
  if (m * n > kLargest || k < 8 * std::max(m, n)) return Cut(k, 1, 1);
  return Cut(k, std::clamp<std::int64_t>(k / kShortest, 1, kMost), Tiling::kGrain);
}

// Rows of a pass without a product: about 32k elements a block.
inline Cut map_blocks(std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t kElements = 32768;
  const std::int64_t per_block = std::max<std::int64_t>(1, kElements / std::max<std::int64_t>(1, cols));
  return Cut(rows, std::max<std::int64_t>(1, (rows + per_block - 1) / per_block), 1);
}

}  // namespace fastsae::cpu
