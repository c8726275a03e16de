// Elements of a tile that is written down become elements of a code.
#include <algorithm>

#include "cpu/latents.h"
#include "cpu/levels.h"
#include "cpu/partition.h"
#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kRows = 16;   // of a task
constexpr std::int64_t kLanes = 32;  // columns that are looked at together

// How many there are of either kind in each row.
template <class S>
struct CountElements {
  const Collection& all;
  std::int32_t* above;  // [rows of the tile]
  std::int32_t* near;

  [[gnu::always_inline]] inline void operator()(Range rows) const {
    const Tensor& z = all.z;
    const CollectionWindow<S> window(all);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const S* line = z.as<S>() + row * z.stride;
      std::int32_t count = 0, close = 0;
      for (std::int64_t col = 0; col < z.cols; ++col) {
        const S bar = window.bar(col);
        count += window.is_above(line[col], bar) ? 1 : 0;
        close += window.is_near(line[col], bar) ? 1 : 0;
      }
      above[row] = count;
      near[row] = close;
    }
  }
};

template <class S>
struct PutElements {
  const Collection& all;

  [[gnu::always_inline]] inline void operator()(Range rows) const {
    const Tensor& z = all.z;
    const CollectionWindow<S> window(all);
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const S* line = z.as<S>() + row * z.stride;
      std::int64_t above = all.above.begin(all.first + row);
      std::int64_t near = has_window() ? all.near.begin(all.first + row) : 0;
      for (std::int64_t first = 0; first < z.cols; first += kLanes) {
        const std::int64_t end = std::min(z.cols, first + kLanes);
        std::int32_t any = 0;
        for (std::int64_t col = first; col < end; ++col) {
          const S bar = window.bar(col);
          any |= window.is_above(line[col], bar) || window.is_near(line[col], bar) ? 1 : 0;
        }
        if (any == 0) continue;
        for (std::int64_t col = first; col < end; ++col) {
          const S bar = window.bar(col);
          if (window.is_above(line[col], bar)) put(all.above, above++, col, line[col]);
          if (window.is_near(line[col], bar)) put(all.near, near++, col, line[col]);
        }
      }
    }
  }

  [[gnu::always_inline]] inline bool has_window() const { return all.half_width > 0; }
  [[gnu::always_inline]] static inline void put(const Code& code, std::int64_t at, std::int64_t col, S z) {
    code.latents.as<std::int32_t>()[at] = static_cast<std::int32_t>(col);
    code.values.as<S>()[at] = z;
  }
};

// Continues the starts of a code with the counts of more rows; false if there are more than `most`, and then they are
// empty.
bool append(const Code& code, std::int64_t first, const std::int32_t* counts, std::int64_t rows,
            std::int64_t most) {
  std::int32_t* starts = code.starts.as<std::int32_t>() + first;
  if (first == 0) starts[0] = 0;
  for (std::int64_t row = 0; row < rows; ++row) starts[row + 1] = starts[row] + counts[row];
  if (starts[rows] - starts[0] <= most) return true;
  std::fill_n(starts + 1, rows, starts[0]);
  return false;
}

template <class S>
void collect_tile(const Collection& all, Scratch& scratch, const Parallel& parallel) {
  const std::int64_t rows = all.z.rows;
  Scratch::Lease lease(scratch, doubles_for<std::int32_t>(2 * rows));
  auto* above = aligned<std::int32_t>(lease.data());
  std::int32_t* near = above + rows;
  const Even parts = Even::at_most(rows, kRows);
  parallel(parts.parts,
           [&](std::int64_t part) { run_at_level(CountElements<S>{all, above, near}, parts[part]); });
  bool fits = append(all.above, all.first, above, rows, all.most_above);
  if (all.half_width > 0) {
    if (!fits) std::fill_n(near, rows, 0);
    if (!append(all.near, all.first, near, rows, all.most_near)) {
      std::fill_n(above, rows, 0);
      append(all.above, all.first, above, rows, all.most_above);
      fits = false;
    }
  }
  *all.listed = fits ? 1 : 0;
  if (fits) parallel(parts.parts, [&](std::int64_t part) { run_at_level(PutElements<S>{all}, parts[part]); });
}

}  // namespace

void collect(const Collection& collection, Scratch& scratch, const Parallel& parallel) {
  with_scalar(collection.z.dtype, [&](auto s) { collect_tile<decltype(s)>(collection, scratch, parallel); });
}

void sum_by_latent(const Code& code, const Tensor& sums) {
  const std::int32_t* latents = code.latents.as<std::int32_t>();
  with_scalar(code.values.dtype, [&](auto s) {
    using S = decltype(s);
    for (std::int64_t i = 0; i < code.begin(code.rows); ++i)
      sums.as<double>()[latents[i]] += static_cast<double>(code.values.as<S>()[i]);
  });
}

}  // namespace fastsae::cpu
