// The k largest scores of a row, one chunk of columns after the other, by one thread block.
//
// The best k so far are a sorted list, which lies in the outputs between two chunks. Columns come in their order, so a
// score enters only if its key is greater than that of the list's last element: of equal ones the earlier stays. The
// few that enter are sorted by counting and merged into the list. Where they are many (in the first columns, or
// where scores rise with the column) bisection first finds a higher bar for them.
//
// No two elements are equal in the order of kernels/selection.h, so the list is the same however the columns are cut.
#pragma once

#include <cstdint>
#include <limits>

#include "blocks.h"
#include "kernels/selection.h"

namespace fastsae::cuda {

// 256 members take 64 bytes of scores each, in vectors of 16: a slab of columns.
struct SelectShape {
  static constexpr int members = 256;
  static constexpr int most = 512;    // of k
  static constexpr int resident = 4;  // blocks on a multiprocessor: what 64 registers a member leave room for
  static constexpr int run = 64;      // of elements that are sorted by counting; runs are then merged
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
  S score[SelectShape::each<S>];
  SelectKey<S> key[SelectShape::each<S>];  // only where a bar is raised
};

template <class S>
struct SelectShared {
  Ranked<SelectKey<S>> entries[3][SelectShape::most];  // the list and what enters it take turns; its runs
  std::uint32_t part[SelectShape::members];
  std::uint32_t whole[SelectShape::groups];
};

// Columns [first, first + cols) of a row's scores: 16-byte aligned, with memory to the end of the last vector.
template <class S>
struct ScoreRow {
  const S* scores;
  std::int32_t first, cols;
  const S* scale = nullptr;  // of these columns, or none: what the scores count times
};

// Where a row's k best are, from the first chunk on, which has k columns at least. With the last chunk they may be put in
// the order of their columns.
template <class S>
struct SelectedRow {
  Out<S> values;
  View<std::int32_t> indices;
  std::int64_t row;
  std::int32_t k;
  bool by_column = false;
};

template <class S, class Team>
class RowSelect {
  using Shape = SelectShape;
  using Key = SelectKey<S>;
  using Entry = Ranked<Key>;
  using State = SelectState<S>;
  static constexpr int kVector = Shape::vector<S>, kEach = Shape::each<S>, kSlab = Shape::slab<S>;
  static constexpr S kLeast = -std::numeric_limits<S>::infinity();
  static constexpr S kNan = std::numeric_limits<S>::quiet_NaN();

  // Passed by what is greater than the list's last element and comes after it, and by NaN. With NaN as the least,
  // which is where the list is empty, by all.
  struct Least {
    S own;
    FS_HD bool operator()(const State& state, int i, int) const { return !(state.score[i] <= own); }
    FS_HD static Key key(const State& state, int i) { return selection_key(state.score[i]); }
  };

  // Passed by this key and place in the slab, and by greater ones. Places count down: the first column has the
  // greatest. What is beyond the row counts as -infinity, and so comes after all that is in it.
  struct Bar {
    Key own;
    int place;
    FS_HD bool operator()(const State& state, int i, int its_place) const {
      return state.key[i] != own ? state.key[i] > own : its_place >= place;
    }
    FS_HD static Key key(const State& state, int i) { return state.key[i]; }
  };

 public:
  FS_HD RowSelect(Team& team, SelectShared<S>& shared, const SelectedRow<S>& best)
      : team_(team), shared_(shared), best_(best) {}

  FS_HD void run(const ScoreRow<S>& row) {
    const int k = best_.k;
    const int room = 2 * k < 64 ? 64 : 2 * k < Shape::most ? 2 * k : Shape::most;  // for what enters
    const int held_before = row.first == 0 ? 0 : k;
    int held = held_before;
    bool changed = false;
    Least least{held == 0 ? kNan : best_.values.at(best_.row, k - 1)};
    for (int from = 0; from < row.cols; from += kSlab) {
      if (held > 0 && least.own != least.own) break;  // the list is all NaN: nothing comes before it
      int found = total([&](int member, State& state) {
        load(member, row, from, state);
        return passing(member, state, least);
      });
      if (found == 0) continue;
      const auto append_those = [&](const auto& passes) {
        team_.phase([&](int member, State& state) {
          if (!changed) fetch(member, held_before);
          append(member, state, row.first + from, passes);
        });
      };
      if (found > room)
        append_those(raised(k, room, found));
      else
        append_those(least);
      sort_runs(found);
      merge(held, found);
      changed = true;
      held = k;
      list_ = 1 - list_;
      least.own = selection_value(shared_.entries[list_][k - 1].key);
    }
    if (!changed && !best_.by_column) return;
    if (!changed) team_.phase([&](int member, State&) { fetch(member, k); });
    team_.phase([&](int member, State&) {
      for (int i = member; i < k; i += Shape::members) {
        const Entry& entry = shared_.entries[list_][i];
        const int place = best_.by_column ? columns_before(entry.column) : i;
        best_.values.put(best_.row, place, selection_value(entry.key));
        best_.indices(best_.row, place) = entry.column;
      }
    });
  }

 private:
  // The column, counted from that of the slab, of a member's i-th element.
  FS_HD static int local(int member, int i) {
    return (i / kVector * Shape::members + member) * kVector + i % kVector;
  }

  FS_HD static void load(int member, const ScoreRow<S>& row, int from, State& state) {
    struct alignas(16) Vector {
      S of[kVector];
    };
    Vector vectors[kEach / kVector];
    FS_UNROLL
    for (int i = 0; i < kEach / kVector; ++i) {  // all are asked for before any is looked at
      const int col = from + local(member, i * kVector);
      FS_UNROLL
      for (int j = 0; j < kVector; ++j) vectors[i].of[j] = kLeast;
      if (col < row.cols) vectors[i] = *reinterpret_cast<const Vector*>(row.scores + col);
    }
    FS_UNROLL
    for (int i = 0; i < kEach / kVector; ++i) {
      const int left = row.cols - from - local(member, i * kVector);
      if (left < kVector) {
        FS_UNROLL
        for (int j = 0; j < kVector; ++j) vectors[i].of[j] = j < left ? vectors[i].of[j] : kLeast;
      }
      if (row.scale != nullptr) {
        const S* scale = row.scale + from + local(member, i * kVector);
        FS_UNROLL
        for (int j = 0; j < kVector; ++j)
          if (j < left) vectors[i].of[j] *= scale[j];
      }
      FS_UNROLL
      for (int j = 0; j < kVector; ++j) state.score[i * kVector + j] = vectors[i].of[j];
    }
  }

  template <class Passes>
  FS_HD static std::uint32_t passing(int member, const State& state, const Passes& passes) {
    std::uint32_t count = 0;
    FS_UNROLL
    for (int i = 0; i < kEach; ++i) count += passes(state, i, kSlab - 1 - local(member, i)) ? 1 : 0;
    return count;
  }

  // What the members have, combined; leaves what each has and what each group of them has in shared memory.
  template <class Of, class Combine>
  FS_HD std::uint32_t combined(const Of& of, const Combine& combine) {
    team_.phase([&](int member, State& state) { shared_.part[member] = of(member, state); });
    team_.phase([&](int member, State&) {
      if (member >= Shape::groups) return;
      const std::uint32_t* part = shared_.part + member * Shape::group;
      std::uint32_t whole = part[0];
      FS_UNROLL
      for (int i = 1; i < Shape::group; ++i) whole = combine(whole, part[i]);
      shared_.whole[member] = whole;
    });
    std::uint32_t all = shared_.whole[0];
    FS_UNROLL
    for (int i = 1; i < Shape::groups; ++i) all = combine(all, shared_.whole[i]);
    return all;
  }

  template <class Count>
  FS_HD int total(const Count& count) {
    return static_cast<int>(combined(count, [](std::uint32_t a, std::uint32_t b) { return a + b; }));
  }

  // A bar that at least k elements of the slab pass and at most `room`, where more are there: bit by bit, those of the
  // key and then, if ties ask for it, those of the place. `found` becomes the number of those that pass.
  FS_HD Bar raised(int k, int room, int& found) {
    constexpr int bits = 8 * sizeof(Key), low_bits = bits - 32;
    const auto keys = [&](int, State& state) {
      Key greatest = 0;
      FS_UNROLL
      for (int i = 0; i < kEach; ++i) {
        state.key[i] = selection_key(state.score[i]);
        greatest = state.key[i] > greatest ? state.key[i] : greatest;
      }
      return static_cast<std::uint32_t>(greatest >> low_bits);
    };
    const std::uint32_t greatest =
        combined(keys, [](std::uint32_t a, std::uint32_t b) { return a > b ? a : b; });
    Bar bar{0, 0};
    const auto rises_to = [&](Bar higher, const auto& passes) {
      const int passed =
          total([&](int member, const State& state) { return passing(member, state, passes); });
      if (passed < k) return false;
      bar = higher;
      found = passed;
      return passed <= room;
    };
    for (int bit = bits - 1; bit >= 0; --bit) {
      const Key key = bar.own | Key(1) << bit;
      if (key >> low_bits > greatest) continue;  // which spares most of an exponent
      if (rises_to({key, 0}, [&](const State& state, int i, int) { return state.key[i] >= key; })) return bar;
    }
    for (int bit = kSlab / 2; bit > 0; bit /= 2) {
      const Bar higher{bar.own, bar.place | bit};
      if (rises_to(higher, higher)) return bar;
    }
    return bar;  // not reached: exactly k pass the bar that is the k-th element's own
  }

  // The list as the last chunk left it.
  FS_HD void fetch(int member, int held) {
    for (int i = member; i < held; i += Shape::members) {
      shared_.entries[list_][i] = {selection_key(best_.values.at(best_.row, i)), best_.indices(best_.row, i)};
    }
  }

  // Puts a member's elements behind those of the members before it; total() was called with the same test.
  template <class Passes>
  FS_HD void append(int member, const State& state, std::int32_t first, const Passes& passes) {
    if (shared_.part[member] == 0) return;
    std::uint32_t to = 0;
    for (int i = 0; i < member / Shape::group; ++i) to += shared_.whole[i];
    for (int i = member / Shape::group * Shape::group; i < member; ++i) to += shared_.part[i];
    FS_UNROLL
    for (int i = 0; i < kEach; ++i) {
      const int col = local(member, i);
      if (passes(state, i, kSlab - 1 - col)) {
        shared_.entries[1 - list_][to++] = {passes.key(state, i), first + col};
      }
    }
  }

  // Sorts what was found in runs: each element goes where the number of those before it says.
  FS_HD void sort_runs(int found) {
    team_.phase([&](int member, State&) {
      const Entry* all = shared_.entries[1 - list_];
      for (int i = member; i < found; i += Shape::members) {
        const int begin = i / Shape::run * Shape::run;
        const int end = begin + Shape::run < found ? begin + Shape::run : found;
        const Entry entry = all[i];
        int place = begin;
        for (int j = begin; j < end; ++j) place += all[j].before(entry) ? 1 : 0;
        shared_.entries[2][place] = entry;
      }
    });
  }

  // The best k of the list and of the runs become the other list.
  FS_HD void merge(int held, int found) {
    team_.phase([&](int member, State&) {
      const Entry *list = shared_.entries[list_], *runs = shared_.entries[2];
      Entry* to = shared_.entries[1 - list_];
      const auto put = [&](const Entry& entry, int place) {
        for (int run = 0; run < found; run += Shape::run) {
          place += before(entry, runs + run, found - run < Shape::run ? found - run : Shape::run);
        }
        if (place < best_.k) to[place] = entry;
      };
      for (int i = member; i < held; i += Shape::members) put(list[i], i);
      // Backwards, so that other members do this.
      for (int i = Shape::members - 1 - member; i < found; i += Shape::members) {
        put(runs[i], before(runs[i], list, held));
      }
    });
  }

  // How many of the list are in lower columns.
  FS_HD int columns_before(std::int32_t column) const {
    int lower = 0;
    for (int i = 0; i < best_.k; ++i) lower += shared_.entries[list_][i].column < column ? 1 : 0;
    return lower;
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
