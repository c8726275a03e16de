// How an encoder product and its selection are cut, so that scores are read from cache and never stored as a whole.
// A kernel that selects in its epilogue would take the place of the two calls that each tile makes.
#pragma once

#include <algorithm>

#include "backend/backend.h"
#include "core/error.h"
#include "kernels/list.h"
#include "select.h"

namespace fastsae::cuda {

// A tile of scores stays in the second-level cache, of which an H100 has 50 MB in two halves.
inline constexpr std::int64_t kScoreBytes = std::int64_t{16} << 20;

struct ScoreTile {
  std::int64_t rows, cols;
  std::size_t bytes(DType dtype) const { return static_cast<std::size_t>(rows * cols) * size_of(dtype); }
};

// By shape alone, so that the bits do not depend on the device. Wide tiles cost least: one brings a row about
// k (its columns) / (columns before it) new elements, and each row a few barriers. But 1024 rows keep 132
// multiprocessors busy, of 4 rows each, and the product has 128 tiles of 128 x 256 in 4 Mi scores however they are cut.
// Pieces are even, and multiples of 128. No less than half of 1024 columns, or all, so that the first tile has k.
//
// The floor for 4096 rows on an H200, at 790 TFLOP/s of bf16 and 5.5 TB/s from that cache:
//   width 768, 24576 latents, k 32:     0.155 TFLOP = 0.20 ms, and  0.40 GB of scores = 0.07 ms, in 24 tiles;
//   width 4096, 131072 latents, k 64:   4.40 TFLOP = 5.57 ms, and  2.15 GB of scores = 0.39 ms, in 128 tiles.
inline ScoreTile score_tile(std::int64_t rows, std::int64_t latents, DType dtype,
                            std::int64_t bytes = kScoreBytes) {
  constexpr std::int64_t unit = 128, few_rows = 1024, few_cols = 1024;
  const auto up = [](std::int64_t count) { return (count + unit - 1) / unit * unit; };
  // The size of even pieces of at most `most`, a multiple of the unit.
  const auto even = [&](std::int64_t count, std::int64_t most) {
    const std::int64_t pieces = std::max<std::int64_t>(1, (count + most - 1) / most);
    return up((count + pieces - 1) / pieces);
  };
  const auto room = [&](std::int64_t other) {
    return std::max(unit, bytes / static_cast<std::int64_t>(size_of(dtype)) /
                              std::max<std::int64_t>(1, other) / unit * unit);
  };
  const std::int64_t cols = even(latents, std::max(few_cols, room(std::min(rows, few_rows))));
  return {std::min(rows, even(rows, room(cols))), cols};
}

// Calls run(part, scores, first) for each tile: `part` is the selection of the tile's rows from the tile's weights,
// whose first column is `first`; `scores` has room for the tile in `scratch`. Columns come in their order.
template <class Run>
void for_each_score_tile(const Selection& whole, ScoreTile tile, void* scratch, const Run& run) {
  const std::int64_t latents = whole.weight.rows, k = whole.values.cols;
  FS_REQUIRE(k >= 1 && k <= std::min<std::int64_t>(SelectShape::most, latents), "k: ", k, " of ", latents,
             " latents; expected 1 to ", std::min<std::int64_t>(SelectShape::most, latents));
  for (std::int64_t row = 0; row < whole.x.rows; row += tile.rows) {
    const std::int64_t rows = std::min(tile.rows, whole.x.rows - row);
    for (std::int64_t first = 0; first < latents; first += tile.cols) {
      const std::int64_t cols = std::min(tile.cols, latents - first);
      Selection part = whole;
      part.x = whole.x.slice_rows(row, rows);
      part.values = whole.values.slice_rows(row, rows);
      part.indices = whole.indices.slice_rows(row, rows);
      part.weight = whole.weight.slice_rows(first, cols);
      part.bias = columns_of(whole.bias, first, cols);
      part.scale = columns_of(whole.scale, first, cols);
      part.by_column = whole.by_column && first + cols == latents;
      run(part, Tensor{scratch, rows, cols, tile.cols, whole.x.dtype}, first);
    }
  }
}

// scores = x weight' + bias; their scale is taken where they are read.
inline void score(Backend& backend, const Selection& part, const Tensor& scores) {
  if (!part.bias.exists()) {
    backend.product({part.x}, {part.weight, true}, scores, false, nullptr, {});
    return;
  }
  with_scalar(scores.dtype, [&](auto s) {
    using S = decltype(s);
    const Kernel add_bias = as_kernel(Infer<S, Identity>{part.bias.template as<S>()});
    backend.product({part.x}, {part.weight, true}, scores, false, &add_bias, {});
  });
}

}  // namespace fastsae::cuda
