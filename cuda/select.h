// The k largest scores of a row, one chunk of columns after the other, by one thread block.
//
// The best k so far are a sorted list, which lies in the outputs between two chunks. Columns come in their order, so a
// score enters only if its key is greater than that of the list's last element: of equal ones the earlier stays. The
// few that enter are put in order by counting and merged into the list. Where they are many (in the first columns, or
// where scores rise with the column) bisection first finds a higher bar for them.
//
// No two elements are equal in the order of kernels/selection.h, so the list is the same however the columns are cut.
#pragma once

#include <cstdint>

#include "blocks.h"
#include "kernels/selection.h"

namespace fastsae::cuda {

// 256 members take 64 bytes of scores each, in vectors of 16: a slab of columns.
struct SelectShape {
  static constexpr int members = 256, most = 512;  // `most` bounds k
  static constexpr int groups = 16, group = members / groups;
  template <class S>
  static constexpr int vector = 16 / sizeof(S);
  template <class S>
  static constexpr int each = 64 / sizeof(S);
  template <class S>
  static constexpr int slab = members * each<S>;
};

template <class S>
using SelectKey = decltype(selection_key(S()));

template <class Key>
struct Ranked {
  Key key;
  std::int32_t column;
  FS_HD bool before(const Ranked& other) const { return comes_before(key, column, other.key, other.column); }
};

template <class S>
struct SelectState {
  SelectKey<S> key[SelectShape::each<S>];
};

template <class S>
struct SelectShared {
  Ranked<SelectKey<S>> entries[3]
                              [SelectShape::most];  // the list and what enters it take turns; that in order
  std::int32_t count[SelectShape::members];
  std::int32_t sum[SelectShape::groups];
};

// Columns [first, first + cols) of a row's scores, 16-byte aligned, with memory to the end of the last vector.
template <class S>
struct ScoreRow {
  const S* scores;
  std::int32_t first, cols;
};

// Where a row's k best are: sorted, complete as far as there are so many columns.
template <class S>
struct SelectedRow {
  Out<S> values;
  View<std::int32_t> indices;
  std::int64_t row;
  std::int32_t k;
};

template <class S, class Team>
class RowSelect {
  using Shape = SelectShape;
  using Key = SelectKey<S>;
  using Entry = Ranked<Key>;
  using State = SelectState<S>;
  static constexpr int kVector = Shape::vector<S>, kEach = Shape::each<S>, kSlab = Shape::slab<S>;

  // An element of a slab passes with this key and place or greater ones. Places count down: the first column has the
  // greatest.
  struct Bar {
    Key key;
    int place;
    FS_HD bool passed_by(Key its_key, int its_place) const {
      return its_key != key ? its_key > key : its_place >= place;
    }
  };

 public:
  FS_HD RowSelect(Team& team, SelectShared<S>& shared, const SelectedRow<S>& best)
      : team_(team), shared_(shared), best_(best) {}

  FS_HD void run(const ScoreRow<S>& row) {
    const int k = best_.k;
    int held = row.first < k ? row.first : k;
    const int held_before = held;
    const int room = 2 * k < 64 ? 64 : 2 * k < Shape::most ? 2 * k : Shape::most;
    const std::int32_t first = row.first;
    // Equal keys do not pass: no place is so great. No score has key 0.
    Bar bar{held == k ? selection_key(best_.values.at(best_.row, k - 1)) : Key(0), kSlab};
    bool fetched = false;
    for (int from = 0; from < row.cols; from += kSlab) {
      int found = total([&](int member, State& state) {
        load(member, row, from, state);
        return passing(member, bar, state);
      });
      if (found == 0) continue;
      const Bar entering = found > room ? raised(k, room, found) : bar;
      team_.phase([&](int member, State& state) {
        if (!fetched) fetch(member, held_before);
        append(member, entering, first + from, state);
      });
      fetched = true;
      put_in_order(found);
      merge(held, found);
      list_ = 1 - list_;
      held = held + found < k ? held + found : k;
      if (held == k) bar.key = shared_.entries[list_][k - 1].key;
    }
    if (!fetched) return;
    team_.phase([&](int member, State&) {
      for (int i = member; i < held; i += Shape::members) {
        const Entry& entry = shared_.entries[list_][i];
        best_.values.put(best_.row, i, selection_value(entry.key));
        best_.indices(best_.row, i) = entry.column;
      }
    });
  }

 private:
  // The column, counted from that of the slab, of a member's i-th element.
  FS_HD static int local(int member, int i) {
    return (i / kVector * Shape::members + member) * kVector + i % kVector;
  }

  // Keys of a member's scores; 0 beyond the row.
  FS_HD static void load(int member, const ScoreRow<S>& row, int from, State& state) {
    struct alignas(16) Vector {
      S of[kVector];
    };
    FS_UNROLL
    for (int i = 0; i < kEach; i += kVector) {
      const int col = from + local(member, i);
      Vector vector{};
      if (col < row.cols) vector = *reinterpret_cast<const Vector*>(row.scores + col);
      FS_UNROLL
      for (int j = 0; j < kVector; ++j) {
        state.key[i + j] = col + j < row.cols ? selection_key(vector.of[j]) : Key(0);
      }
    }
  }

  FS_HD static int passing(int member, Bar bar, const State& state) {
    int count = 0;
    FS_UNROLL
    for (int i = 0; i < kEach; ++i) {
      if (bar.passed_by(state.key[i], kSlab - 1 - local(member, i))) ++count;
    }
    return count;
  }

  // The sum of what the members count; leaves the counts and the sums of groups of members in shared memory.
  template <class Count>
  FS_HD int total(const Count& count) {
    team_.phase([&](int member, State& state) { shared_.count[member] = count(member, state); });
    team_.phase([&](int member, State&) {
      if (member >= Shape::groups) return;
      int sum = 0;
      FS_UNROLL
      for (int i = 0; i < Shape::group; ++i) sum += shared_.count[member * Shape::group + i];
      shared_.sum[member] = sum;
    });
    int all = 0;
    FS_UNROLL
    for (int group = 0; group < Shape::groups; ++group) all += shared_.sum[group];
    return all;
  }

  // A bar that at least k elements of the slab pass and at most `room`, where more than `room` are there: its bits
  // one by one, the key's and then, if ties ask for it, the place's. `found` becomes how many pass.
  FS_HD Bar raised(int k, int room, int& found) {
    Bar bar{0, 0};
    const auto enough = [&](Bar higher) {
      const int passed = total([&](int member, State& state) { return passing(member, higher, state); });
      if (passed < k) return false;
      bar = higher;
      found = passed;
      return passed <= room;
    };
    for (Key bit = Key(1) << (8 * sizeof(Key) - 1); bit != 0; bit >>= 1) {
      if (enough({bar.key | bit, 0})) return bar;
    }
    for (int bit = kSlab / 2; bit != 0; bit /= 2) {
      if (enough({bar.key, bar.place | bit})) return bar;
    }
    return bar;  // not reached: exactly k pass the bar that has all bits of the k-th element
  }

  // The list as the last chunk left it.
  FS_HD void fetch(int member, int held) {
    for (int i = member; i < held; i += Shape::members) {
      shared_.entries[list_][i] = {selection_key(best_.values.at(best_.row, i)), best_.indices(best_.row, i)};
    }
  }

  // Puts a member's elements behind those of the members before it.
  FS_HD void append(int member, Bar bar, std::int32_t first, const State& state) {
    if (shared_.count[member] == 0) return;
    int to = 0;
    for (int group = 0; group < member / Shape::group; ++group) to += shared_.sum[group];
    for (int other = member / Shape::group * Shape::group; other < member; ++other)
      to += shared_.count[other];
    FS_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int col = local(member, i);
      if (bar.passed_by(state.key[i], kSlab - 1 - col))
        shared_.entries[1 - list_][to++] = {state.key[i], first + col};
    }
  }

  // Each element goes where the number of those before it says.
  FS_HD void put_in_order(int count) {
    team_.phase([&](int member, State&) {
      const Entry* found = shared_.entries[1 - list_];
      for (int i = member; i < count; i += Shape::members) {
        const Entry entry = found[i];
        int place = 0;
        for (int j = 0; j < count; ++j) place += found[j].before(entry) ? 1 : 0;
        shared_.entries[2][place] = entry;
      }
    });
  }

  // The best k of the list and of what was put in order, into the room of what was found.
  FS_HD void merge(int held, int found) {
    team_.phase([&](int member, State&) {
      const Entry *list = shared_.entries[list_], *ordered = shared_.entries[2];
      Entry* to = shared_.entries[1 - list_];
      for (int i = member; i < held; i += Shape::members) {
        const int place = i + before(list[i], ordered, found);
        if (place < best_.k) to[place] = list[i];
      }
      for (int i = member; i < found; i += Shape::members) {
        const int place = i + before(ordered[i], list, held);
        if (place < best_.k) to[place] = ordered[i];
      }
    });
  }

  // How many of a sorted list come before an entry.
  FS_HD static int before(const Entry& entry, const Entry* sorted, int count) {
    int low = 0;
    while (low < count) {
      const int middle = (low + count) / 2;
      if (sorted[middle].before(entry))
        low = middle + 1;
      else
        count = middle;
    }
    return low;
  }

  Team& team_;
  SelectShared<S>& shared_;
  const SelectedRow<S>& best_;
  int list_ = 0;
};

template <class S, class Team>
FS_HD void select_row(Team& team, const ScoreRow<S>& scores, const SelectedRow<S>& best,
                      SelectShared<S>& shared) {
  RowSelect<S, Team>(team, shared, best).run(scores);
}

}  // namespace fastsae::cuda
