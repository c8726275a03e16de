// What was kept of a batch selection as rows of a code: where each begins, and its elements by column.
#pragma once

#include "select_batch_kept.h"

namespace fastsae::cuda {

// A row's elements lie together in each tile of columns: found by bisection.
template <class S>
struct KeptRow {
  const BatchWork& work;
  std::int32_t row;

  // The first element that is not before column `col` of the row.
  FS_HD std::uint32_t find(std::int32_t col) const {
    const auto* entries = static_cast<const BatchEntry<S>*>(work.entries);
    const std::int32_t rows = static_cast<std::int32_t>(work.tile.rows),
                       cols = static_cast<std::int32_t>(work.tile.cols);
    const std::int32_t tile_row = row / rows, tile_col = col / cols;
    const auto is_before = [&](const BatchEntry<S>& entry) {
      const std::int32_t its_row = entry.row / rows, its_col = entry.col / cols;
      if (its_row != tile_row) return its_row < tile_row;
      if (its_col != tile_col) return its_col < tile_col;
      return entry.row != row ? entry.row < row : entry.col < col;
    };
    std::uint32_t low = 0, high = work.state->size;
    while (low < high) {
      const std::uint32_t middle = low + (high - low) / 2;
      if (is_before(entries[middle]))
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }
  // The end of what begins at `from` in the tile that starts with column `first`.
  FS_HD std::uint32_t end(std::int32_t first) const {
    const auto latents = static_cast<std::int32_t>(work.latents()),
               stop = first + static_cast<std::int32_t>(work.tile.cols);
    const std::int32_t last = (stop < latents ? stop : latents) - 1;
    const auto* entries = static_cast<const BatchEntry<S>*>(work.entries);
    const std::uint32_t at = find(last);
    return at < work.state->size && entries[at].row == row && entries[at].col == last ? at + 1 : at;
  }
};

// How many each row has, in the place where it begins.
template <class S>
struct CountRows {
  static constexpr int members = 256;
  using State = NoState;
  struct Shared {};
  BatchWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t block) const {
    team.phase([&](int member, NoState&) {
      const KeptRow<S> kept{work, static_cast<std::int32_t>(block * members + member)};
      if (kept.row >= work.rows()) return;
      std::uint32_t own = 0;
      const auto latents = static_cast<std::int32_t>(work.latents()),
                 cols = static_cast<std::int32_t>(work.tile.cols);
      for (std::int32_t first = 0; first < latents; first += cols) own += kept.end(first) - kept.find(first);
      work.all.starts.template as<std::int32_t>()[kept.row] = static_cast<std::int32_t>(own);
    });
  }
};

struct StartRows {
  static constexpr int members = 512;
  using State = NoState;
  struct Shared {
    ScanShared<members> scan;
  };
  BatchWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t) const {
    std::int32_t* starts = work.all.starts.as<std::int32_t>();
    std::uint32_t before = 0;
    for (std::int64_t from = 0; from < work.rows(); from += members) {
      const std::uint32_t found = scan(team, shared.scan, [&](int member, NoState&) {
        return from + member < work.rows() ? static_cast<std::uint32_t>(starts[from + member]) : 0u;
      });
      team.phase([&](int member, NoState&) {
        if (from + member < work.rows())
          starts[from + member] = static_cast<std::int32_t>(before + shared.scan.before(member));
      });
      before += found;
    }
    team.phase([&](int member, NoState&) {
      if (member == 0) starts[work.rows()] = static_cast<std::int32_t>(before);
    });
  }
};

// Eight rows, 32 members each.
template <class S>
struct PutRows {
  static constexpr int members = 256, lanes = 32, rows = members / lanes;
  using State = NoState;
  struct Shared {};
  BatchWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t block) const {
    const auto* entries = static_cast<const BatchEntry<S>*>(work.entries);
    team.phase([&](int member, NoState&) {
      const KeptRow<S> kept{work, static_cast<std::int32_t>(block * rows + member / lanes)};
      if (kept.row >= work.rows()) return;
      std::int64_t to = work.all.starts.template as<std::int32_t>()[kept.row];
      const auto latents = static_cast<std::int32_t>(work.latents()),
                 cols = static_cast<std::int32_t>(work.tile.cols);
      for (std::int32_t first = 0; first < latents; first += cols) {
        const std::uint32_t begin = kept.find(first), end = kept.end(first);
        for (std::uint32_t i = begin + member % lanes; i < end; i += lanes) {
          work.all.columns.template as<std::int32_t>()[to + i - begin] = entries[i].col;
          work.all.values.template as<S>()[to + i - begin] = selection_value(entries[i].key);
        }
        to += end - begin;
      }
    });
  }
};

}  // namespace fastsae::cuda
