// What is not 0 of a tile becomes a list.
#include <algorithm>

#include "cpu/latents.h"
#include "cpu/levels.h"
#include "cpu/partition.h"
#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kRows = 16;   // of a task
constexpr std::int64_t kLanes = 32;  // columns that are looked at together

template <class S>
struct CountPresent {
  const Tensor& tile;
  std::int32_t* counts;  // [rows]

  [[gnu::always_inline]] inline void operator()(Range rows) const {
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const S* line = tile.as<S>() + row * tile.stride;
      std::int32_t count = 0;
      for (std::int64_t col = 0; col < tile.cols; ++col) count += line[col] != S(0) ? 1 : 0;
      counts[row] = count;
    }
  }
};

template <class S>
struct PutPresent {
  const Tensor& tile;
  const Code& code;

  [[gnu::always_inline]] inline void operator()(Range rows) const {
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const S* line = tile.as<S>() + row * tile.stride;
      std::int64_t at = code.begin(row);
      for (std::int64_t first = 0; first < tile.cols; first += kLanes) {
        const std::int64_t end = std::min(tile.cols, first + kLanes);
        std::int32_t any = 0;
        for (std::int64_t col = first; col < end; ++col) any |= line[col] != S(0) ? 1 : 0;
        if (any == 0) continue;
        for (std::int64_t col = first; col < end; ++col) {
          if (line[col] == S(0)) continue;
          code.latents.as<std::int32_t>()[at] = static_cast<std::int32_t>(col);
          code.values.as<S>()[at++] = line[col];
        }
      }
    }
  }
};

}  // namespace

bool list_elements(const Tensor& tile, const Code& code, const Parallel& parallel) {
  std::int32_t* starts = code.starts.as<std::int32_t>();
  const Even parts = Even::at_most(tile.rows, kRows);
  return with_scalar(tile.dtype, [&](auto s) {
    using S = decltype(s);
    parallel(parts.parts,
             [&](std::int64_t part) { run_at_level(CountPresent<S>{tile, starts + 1}, parts[part]); });
    std::int64_t total = starts[0] = 0;
    for (std::int64_t row = 1; row <= tile.rows; ++row) {
      total += starts[row];
      if (total > code.values.cols) return false;
      starts[row] = static_cast<std::int32_t>(total);
    }
    parallel(parts.parts, [&](std::int64_t part) { run_at_level(PutPresent<S>{tile, code}, parts[part]); });
    return true;
  });
}

}  // namespace fastsae::cpu
