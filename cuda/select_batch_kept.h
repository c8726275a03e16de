// The largest scores of a whole batch. Scores come tile by tile, as in select.h; those from a bar on are kept. The bar rises
// with the tiles: the highest digits of all scores so far are counted, and what cannot be among the `count` best is left
// out. What is kept at the end is a little more than that; an exact selection by value, then by place, makes it `count`.
//
// No element is ever lost to the bar, so that the result depends on scores alone. Nothing is known to the host: memory is
// for 3 count elements and a tile, and what would exceed it is thinned out exactly before a tile comes.
#pragma once

#include "ranks.h"
#include "select_tiles.h"

namespace fastsae::cuda {

template <class S>
struct BatchEntry {
  SelectKey<S> key;
  std::int32_t row, col;
  // Greater where it comes first of those with its key.
  FS_HD std::uint64_t place() const {
    return ~(static_cast<std::uint64_t>(static_cast<std::uint32_t>(row)) << 32 |
             static_cast<std::uint32_t>(col));
  }
};

struct BatchState {
  std::uint64_t bar;           // keys from here on are kept
  std::uint32_t size, before;  // elements now, and before the last tile
};

struct BatchWork {
  static constexpr int kBins = 1 << 16;  // of positive scores: their exponent and the first bits after it
  BatchSelection all;
  ScoreTile tile;
  void* scores;  // of a tile
  BatchState* state;
  std::uint32_t* bins;    // [kBins]
  std::uint32_t* counts;  // [tile rows]: kept of a row; then what comes before it
  void* entries;          // [capacity()], in the order of tiles, in each by row and column

  explicit BatchWork(const BatchSelection& selection, std::int64_t tile_bytes = kScoreBytes)
      : all(selection),
        tile(score_tile(selection.x.rows, selection.weight.rows, selection.x.dtype, tile_bytes)) {
    FS_REQUIRE(all.count >= 0, "count: expected 0 or more, got ", all.count);
    FS_REQUIRE(capacity() < std::int64_t{1} << 32, "count: ", all.count,
               " is more than a GPU selects from at once");
  }
  FS_HD std::int64_t rows() const { return all.x.rows; }
  FS_HD std::int64_t latents() const { return all.weight.rows; }
  FS_HD std::int64_t capacity() const { return 3 * all.count + tile.rows * tile.cols; }
  std::size_t bytes() const {
    const std::size_t entry =
        all.x.dtype == DType::f32 ? sizeof(BatchEntry<float>) : sizeof(BatchEntry<double>);
    return tile.bytes(all.x.dtype) + entry * static_cast<std::size_t>(capacity()) + sizeof(BatchState) +
           sizeof(std::uint32_t) * static_cast<std::size_t>(kBins + tile.rows);
  }
  void use(void* memory) {
    auto* at = static_cast<std::byte*>(memory);
    const auto take = [&](std::size_t size) {
      std::byte* const taken = at;
      at += size;
      return taken;
    };
    scores = take(tile.bytes(all.x.dtype));  // a multiple of 512 bytes: its columns are one of 128
    state = reinterpret_cast<BatchState*>(take(sizeof(BatchState)));
    bins = reinterpret_cast<std::uint32_t*>(take(sizeof(std::uint32_t) * kBins));
    entries = at;
    at += (all.x.dtype == DType::f32 ? sizeof(BatchEntry<float>) : sizeof(BatchEntry<double>)) *
          static_cast<std::size_t>(capacity());
    counts = reinterpret_cast<std::uint32_t*>(at);
  }
  template <class S>
  FS_HD static std::uint64_t least() {
    return std::uint64_t{selection_key(S(0))} + 1;
  }
  template <class S>
  static constexpr int kShift = 8 * static_cast<int>(sizeof(S)) - 1 - 16;
  template <class S>
  FS_HD static std::uint32_t bin_of(SelectKey<S> key) {
    return static_cast<std::uint32_t>(key >> kShift<S>) & (kBins - 1);
  }
  template <class S>
  FS_HD static std::uint64_t edge_of(std::uint32_t bin) {
    return std::uint64_t{selection_key(S(0))} | std::uint64_t{bin} << kShift<S>;
  }
};

// Rows [first_row, first_row + rows) and columns [first, first + cols) of the scores.
template <class S>
struct BatchTile {
  BatchWork work;
  std::int64_t first_row, rows, first, cols;
  FS_HD SelectKey<S> key(std::int64_t row, std::int64_t col) const {
    S score = static_cast<const S*>(work.scores)[row * work.tile.cols + col];
    if (work.all.scale.exists()) score *= work.all.scale.template as<S>()[first + col];
    return selection_key(score);
  }
  FS_HD bool passes(std::int64_t row, std::int64_t col, std::uint64_t bar) const {
    return col < cols && key(row, col) >= bar;
  }
};

struct StartBatch {
  static constexpr int members = 256;
  using State = NoState;
  struct Shared {};
  BatchWork work;
  std::uint64_t least;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t block) const {
    team.phase([&](int member, NoState&) {
      work.bins[block * members + member] = 0;
      if (block == 0 && member == 0) *work.state = {least, 0, 0};
    });
  }
};

// The counts of a row's highest digits.
template <class S>
struct CountDigits {
  static constexpr int members = 256;
  using State = NoState;
  struct Shared {};
  BatchTile<S> tile;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t row) const {
    const std::uint64_t bar = tile.work.state->bar;
    team.phase([&](int member, NoState&) {
      for (std::int64_t col = member; col < tile.cols; col += members) {
        const auto key = tile.key(row, col);
        if (key >= bar) add_one(tile.work.bins + BatchWork::bin_of<S>(key));
      }
    });
  }
};

// The bar rises to the least score that the `count`-th may have.
template <class S>
struct RaiseBar {
  static constexpr int members = 512, each = BatchWork::kBins / members;
  using State = NoState;
  struct Shared {
    ScanShared<members> scan;
  };
  BatchWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t) const {
    const auto bin = [](int member, int i) { return BatchWork::kBins - 1 - (member * each + i); };
    scan(team, shared.scan, [&](int member, NoState&) {
      std::uint32_t own = 0;
      for (int i = 0; i < each; ++i) own += work.bins[bin(member, i)];
      return own;
    });
    team.phase([&](int member, NoState&) {
      std::uint64_t sum = shared.scan.before(member);
      const auto count = static_cast<std::uint64_t>(work.all.count);
      if (sum >= count || sum + shared.scan.part[member] < count) return;
      int i = 0;
      for (; sum + work.bins[bin(member, i)] < count; ++i) sum += work.bins[bin(member, i)];
      const std::uint64_t edge = BatchWork::edge_of<S>(static_cast<std::uint32_t>(bin(member, i)));
      if (edge > work.state->bar) work.state->bar = edge;
    });
  }
};

// How many of a row are kept.
template <class S>
struct CountKept {
  static constexpr int members = 256;
  using State = NoState;
  struct Shared {
    ScanShared<members> scan;
  };
  BatchTile<S> tile;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t row) const {
    const std::uint64_t bar = tile.work.state->bar;
    const std::uint32_t found = scan(team, shared.scan, [&](int member, NoState&) {
      std::uint32_t own = 0;
      for (std::int64_t col = member; col < tile.cols; col += members)
        own += tile.passes(row, col, bar) ? 1 : 0;
      return own;
    });
    team.phase([&](int member, NoState&) {
      if (member == 0) tile.work.counts[row] = found;
    });
  }
};

// What one block does with all that was kept.
template <class S>
struct Thinning {
  static constexpr int members = 512, each = 32 / sizeof(S);
  using Key = SelectKey<S>;
  struct State {
    BatchEntry<S> entry[each];
    std::uint32_t kept;  // bits
  };
  struct Shared {
    RankShared<members> ranks;
    ScanShared<members> scan;
  };
  BatchWork work;

  FS_HD BatchEntry<S>* entries() const { return static_cast<BatchEntry<S>*>(work.entries); }

  // Keeps those that pass, in their order; returns how many.
  template <class Team, class Passes>
  FS_HD std::uint32_t keep(Team& team, Shared& shared, std::uint32_t size, const Passes& passes) const {
    std::uint32_t kept = 0;
    for (std::uint32_t from = 0; from < size; from += members * each) {
      const std::uint32_t found = scan(team, shared.scan, [&](int member, State& state) {
        state.kept = 0;
        std::uint32_t own = 0;
        FS_UNROLL
        for (int i = 0; i < each; ++i) {
          const std::uint32_t at = from + static_cast<std::uint32_t>(member * each + i);
          if (at < size) state.entry[i] = entries()[at];
          const bool passed = at < size && passes(state.entry[i]);
          state.kept |= passed ? 1u << i : 0u;
          own += passed ? 1 : 0;
        }
        return own;
      });
      team.phase([&](int member, State& state) {
        std::uint32_t to = kept + shared.scan.before(member);
        FS_UNROLL
        for (int i = 0; i < each; ++i)
          if ((state.kept >> i & 1) != 0) entries()[to++] = state.entry[i];
      });
      kept += found;
    }
    return kept;
  }

  // The `count` that come first; their last key in `last`.
  template <class Team>
  FS_HD std::uint32_t keep_best(Team& team, Shared& shared, std::uint32_t size, std::uint32_t count,
                                Key& last) const {
    const auto ranked = ranked_key<Key>(team, shared.ranks, count, [&](int member, const auto& see) {
      for (std::uint32_t i = static_cast<std::uint32_t>(member); i < size; i += members)
        see(entries()[i].key);
    });
    last = ranked.key;
    if (count == size) return size;
    std::uint64_t lowest = 0;
    if (ranked.taken < ranked.equal) {
      lowest = ranked_key<std::uint64_t>(team, shared.ranks, ranked.taken, [&](int member, const auto& see) {
                 for (std::uint32_t i = static_cast<std::uint32_t>(member); i < size; i += members)
                   if (entries()[i].key == ranked.key) see(entries()[i].place());
               }).key;
    }
    return keep(team, shared, size, [&](const BatchEntry<S>& entry) {
      return entry.key != ranked.key ? entry.key > ranked.key : entry.place() >= lowest;
    });
  }
};

// Room for what a tile adds, and where each of its rows goes.
template <class S>
struct PlaceKept {
  static constexpr int members = Thinning<S>::members;
  using State = typename Thinning<S>::State;
  using Shared = typename Thinning<S>::Shared;
  BatchTile<S> tile;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t) const {
    const BatchWork& work = tile.work;
    const Thinning<S> thinning{work};
    const auto count = static_cast<std::uint32_t>(work.all.count);
    const std::uint64_t bar = work.state->bar;
    std::uint32_t size = work.state->size;
    if (size > 3 * count) {
      size = thinning.keep(team, shared, size, [&](const BatchEntry<S>& entry) { return entry.key >= bar; });
      SelectKey<S> last;
      if (size > 2 * count) size = thinning.keep_best(team, shared, size, count, last);
    }
    std::uint32_t to = size;
    for (std::int64_t from = 0; from < tile.rows; from += members) {
      const std::uint32_t found = scan(team, shared.scan, [&](int member, State&) {
        return from + member < tile.rows ? work.counts[from + member] : 0u;
      });
      team.phase([&](int member, State&) {
        if (from + member < tile.rows) work.counts[from + member] = to + shared.scan.before(member);
      });
      to += found;
    }
    team.phase([&](int member, State&) {
      if (member == 0) *work.state = {bar, to, size};
    });
  }
};

template <class S>
struct PutKept {
  static constexpr int members = 256, each = 4;
  using State = NoState;
  struct Shared {
    ScanShared<members> scan;
  };
  BatchTile<S> tile;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t row) const {
    const BatchWork& work = tile.work;
    const std::uint64_t bar = work.state->bar;
    std::uint32_t to = work.counts[row];
    if (to == (row + 1 < tile.rows ? work.counts[row + 1] : work.state->size)) return;
    for (std::int64_t from = 0; from < tile.cols; from += members * each) {
      const std::uint32_t found = scan(team, shared.scan, [&](int member, NoState&) {
        std::uint32_t own = 0;
        for (int i = 0; i < each; ++i) own += tile.passes(row, from + member * each + i, bar) ? 1 : 0;
        return own;
      });
      team.phase([&](int member, NoState&) {
        if (shared.scan.part[member] == 0) return;
        auto* entry = static_cast<BatchEntry<S>*>(work.entries) + to + shared.scan.before(member);
        for (int i = 0; i < each; ++i) {
          const std::int64_t col = from + member * each + i;
          if (!tile.passes(row, col, bar)) continue;
          *entry++ = {tile.key(row, col), static_cast<std::int32_t>(tile.first_row + row),
                      static_cast<std::int32_t>(tile.first + col)};
        }
      });
      to += found;
    }
  }
};

template <class S>
struct FinishBatch {
  static constexpr int members = Thinning<S>::members;
  using State = typename Thinning<S>::State;
  using Shared = typename Thinning<S>::Shared;
  BatchWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t) const {
    const Thinning<S> thinning{work};
    const std::uint64_t bar = work.state->bar;
    const auto count = static_cast<std::uint32_t>(work.all.count);
    std::uint32_t size = work.state->size;
    if (size > count)
      size = thinning.keep(team, shared, size, [&](const BatchEntry<S>& entry) { return entry.key >= bar; });
    SelectKey<S> last = 0;
    if (size > 0 && count > 0)
      size = thinning.keep_best(team, shared, size, size < count ? size : count, last);
    team.phase([&](int member, State&) {
      if (member != 0) return;
      work.state->size = count > 0 ? size : 0;
      *work.all.smallest = size == 0 || count == 0 ? 0.0 : static_cast<double>(selection_value(last));
    });
  }
};

}  // namespace fastsae::cuda
