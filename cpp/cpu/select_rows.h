// The k best of each row of scores, one list for each row: those of a provider as they come, and what the ways of
// selecting have in common.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <type_traits>

#include "cpu/select_filter.h"
#include "kernels/selection.h"

namespace fastsae::cpu {

inline constexpr std::int64_t kItemBytes = 64 << 20;  // for the best of the rows that are taken at once
inline constexpr std::int64_t kFinishedRows = 16;     // by one task

// An element as one number, its key before the complement of its column: of two elements, the greater number comes
// first. 0 is less than any.
template <class S>
using Item = std::conditional_t<sizeof(S) == 4, std::uint64_t, unsigned __int128>;

template <class S>
Item<S> item_of(S value, std::int64_t column) {
  return Item<S>(selection_key(value)) << 32 | static_cast<std::uint32_t>(~column);
}

template <class S>
S value_of(Item<S> item) {
  return selection_value(static_cast<decltype(selection_key(S()))>(item >> 32));
}

template <class S>
std::int32_t column_of(Item<S> item) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(item));
}

// The k first of `count` items become a row of the results.
template <class S>
void write_best(Item<S>* items, std::int64_t count, std::int64_t row, const Selection& to) {
  const std::int64_t k = to.values.cols;
  std::nth_element(items, items + k - 1, items + count, std::greater<Item<S>>());
  if (to.by_column)
    std::sort(items, items + k, [](Item<S> a, Item<S> b) { return column_of<S>(a) < column_of<S>(b); });
  else
    std::sort(items, items + k, std::greater<Item<S>>());
  for (std::int64_t i = 0; i < k; ++i) {
    to.values.view<S>()(row, i) = value_of<S>(items[i]);
    to.indices.view<std::int32_t>()(row, i) = column_of<S>(items[i]);
  }
}

// Each lane of columns keeps a list of its own for each row; at the end they join the first one.
template <class S>
class SelectRows {
 public:
  SelectRows(const Selection& selection, Provider provider, Scratch& scratch, const Parallel& parallel)
      : all_(selection),
        provider_(provider),
        scratch_(scratch),
        parallel_(parallel),
        tasks_(threads_here()),
        k_(selection.values.cols),
        latents_(selection.weight.rows),
        capacity_(std::min(std::max<std::int64_t>(2 * k_, 64), std::max<std::int64_t>(latents_, k_))),
        line_(selection.bias, selection.scale) {}

  void run() {
    const std::int64_t item_bytes = capacity_ * static_cast<std::int64_t>(sizeof(Item<S>));
    const std::int64_t most =
        std::clamp<std::int64_t>(kItemBytes / item_bytes, 1, ScoreTiles<S>::most_rows(all_.x.cols));
    for (std::int64_t first = 0; first < all_.x.rows; first += most)
      run(first, std::min(most, all_.x.rows - first));
  }

 private:
  // The best of a row so far: `count` items in no order, the k best among them.
  struct Row {
    Item<S> bar = 0;  // what k at least have reached: what comes after it is out
    std::int64_t count = 0;
  };

  void run(std::int64_t first, std::int64_t rows) {
    const ScoreTiles<S> tiles(all_.x.slice_rows(first, rows), all_.weight, provider_, tasks_,
                              std::max<std::int64_t>(1, latents_ / (2 * k_)));
    const std::int64_t lists = rows * tiles.lanes();
    Scratch::Lease items(scratch_, doubles_for<Item<S>>(lists * capacity_)),
        states(scratch_, doubles_for<Row>(lists));
    items_ = aligned<Item<S>>(items.data());
    rows_ = aligned<Row>(states.data());
    std::fill_n(rows_, lists, Row{});
    tiles.run(scratch_, parallel_, [&](const ScoreTile<S>& tile) {
      for (std::int64_t row = tile.rows.begin; row < tile.rows.end; ++row)
        scan(tile, row, tile.lane * rows + row);
    });
    const Even blocks = Even::at_most(rows, kFinishedRows);
    parallel_(blocks.parts, [&](std::int64_t block) {
      for (std::int64_t row = blocks[block].begin; row < blocks[block].end; ++row) {
        for (std::int64_t list = row + rows; list < lists; list += rows)
          add(row, rows_[list].count, [&](std::int64_t i) { return items_[list * capacity_ + i]; });
        write_best<S>(items_ + row * capacity_, rows_[row].count, first + row, all_);
      }
    });
  }

  void scan(const ScoreTile<S>& tile, std::int64_t row, std::int64_t list) {
    std::int32_t offsets[kMostTileCols];
    const Item<S> bar = rows_[list].bar;
    const S limit = bar == 0 ? std::numeric_limits<S>::quiet_NaN() : value_of<S>(bar);
    const Scored<S> line = line_.of(tile, row);
    const std::int64_t found = filter(line, limit, offsets);
    add(list, found,
        [&](std::int64_t i) { return item_of<S>(line(offsets[i]), tile.cols.begin + offsets[i]); });
  }

  // The items of `item(0 .. count-1)`.
  template <class Of>
  void add(std::int64_t list, std::int64_t count, const Of& item) {
    Row state = rows_[list];
    Item<S>* items = items_ + list * capacity_;
    for (std::int64_t i = 0; i < count; ++i) {
      items[state.count] = item(i);
      state.count += items[state.count] > state.bar ? 1 : 0;
      if (state.count == capacity_) keep_best(items, state);
    }
    rows_[list] = state;
  }

  // Some more than k of the best stay. Their bar is found between the last and the first item by halves, without the
  // branches of a partition, which nobody could foretell; items differ, so that there is one.
  void keep_best(Item<S>* items, Row& state) const {
    const std::int64_t count = state.count, most = k_ + k_ / 8;
    Item<S> low = items[0], high = items[0];
    for (std::int64_t i = 1; i < count; ++i) {
      low = std::min(low, items[i]);
      high = std::max(high, items[i]);
    }
    for (std::int64_t found = count; found > most;) {
      const Item<S> middle = low + (high - low + 1) / 2;
      std::int64_t reached = 0;
      for (std::int64_t i = 0; i < count; ++i) reached += items[i] >= middle ? 1 : 0;
      if (reached < k_) {
        high = middle - 1;
      } else {
        low = middle;
        found = reached;
      }
    }
    state.count = 0;
    for (std::int64_t i = 0; i < count; ++i) {
      items[state.count] = items[i];
      state.count += items[i] >= low ? 1 : 0;
    }
    state.bar = low;
  }

  const Selection& all_;
  const Provider provider_;
  Scratch& scratch_;
  const Parallel& parallel_;
  const std::int64_t tasks_, k_, latents_, capacity_;
  const ScoreLines<S> line_;
  Item<S>* items_ = nullptr;  // [lanes x rows x capacity_]
  Row* rows_ = nullptr;       // [lanes x rows]
};

}  // namespace fastsae::cpu
