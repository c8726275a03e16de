// The largest elements of a whole matrix. Each task keeps a list of what comes before a bar; now and then the bar rises to
// the count-th best of all lists, and a list that is full keeps the `count` best of its own.
#include <algorithm>
#include <limits>

#include "core/error.h"
#include "cpu/float_mode.h"
#include "cpu/select.h"
#include "cpu/select_filter.h"
#include "kernels/list.h"
#include "kernels/selection.h"

namespace fastsae::cpu {
namespace {

constexpr double kUnderHint = 0.875;         // of the hint, where the bar starts
constexpr std::int64_t kFinishedRows = 256;  // by one task

template <class S>
class SelectBatch {
  using Key = decltype(selection_key(S()));

  struct Entry {
    Key key;
    std::uint32_t row, col;
    static bool before(const Entry& a, const Entry& b) {
      if (a.key != b.key) return a.key > b.key;
      return a.row != b.row ? a.row < b.row : a.col < b.col;
    }
  };

  struct List {
    Entry* entries;
    std::int64_t size;
    Entry last;  // what does not come before it is out, once there is one
    bool has_last;
    S limit;                  // what is not greater is out
    std::int64_t passed = 0;  // when they were last compared with a key
  };

 public:
  SelectBatch(const BatchSelection& selection, Precision precision, Scratch& scratch,
              const Parallel& parallel)
      : all_(selection),
        precision_(precision),
        scratch_(scratch),
        parallel_(parallel),
        tasks_(threads_here()),
        count_(selection.count),
        capacity_(std::min(2 * count_, selection.x.rows * selection.weight.rows)),
        line_(selection.bias, selection.scale),
        entries_(scratch, doubles_for<Entry>(tasks_ * capacity_ + std::min(count_, capacity_))),
        list_memory_(scratch, doubles_for<List>(tasks_)),
        lists_(aligned<List>(list_memory_.data())) {
    std::fill_n(lists_, tasks_, List{});
  }

  void run() {
    const double start = all_.hint == nullptr ? 0 : kUnderHint * *all_.hint;
    const Key least = selection_key(S(0)) + 1;
    Key bar = start > 0 && start < std::numeric_limits<S>::max()
                  ? std::max(least, selection_key(static_cast<S>(start)))
                  : least;
    if (count_ > 0) collect(bar);
    if (total() < count_ && bar > least) collect(least);
    finish();
  }

 private:
  // All that come before the bar, or the best `count` of them and more.
  void collect(Key bar) {
    for (std::int64_t task = 0; task < tasks_; ++task)
      lists_[task] = {aligned<Entry>(entries_.data()) + task * capacity_, 0, {}, false, limit_of(bar)};
    const std::int64_t most = ScoreTiles<S>::most_rows(all_.x.cols);
    for (std::int64_t first = 0; first < all_.x.rows; first += most) {
      const std::int64_t rows = std::min(most, all_.x.rows - first);
      ScoreTiles<S>(all_.x.slice_rows(first, rows), all_.weight, precision_, tasks_, tasks_)
          .run(
              scratch_, parallel_, [&](const ScoreTile<S>& tile) { scan(tile, first); },
              [this] { raise_bar(); });
    }
  }

  // The greatest that is less than a key's value; those of equal value may still come before it.
  static S limit_of(Key bar) {
    return bar == selection_key(std::numeric_limits<S>::quiet_NaN()) ? std::numeric_limits<S>::infinity()
                                                                     : selection_value(bar - 1);
  }

  void scan(const ScoreTile<S>& tile, std::int64_t first) {
    std::int32_t offsets[kMostTileCols];
    List& list = lists_[tile.task];
    for (std::int64_t row = tile.rows.begin; row < tile.rows.end; ++row) {
      const Scored<S> line = line_.of(tile, row);
      const std::int64_t found = filter(line, list.limit, offsets);
      for (std::int64_t i = 0; i < found; ++i) {
        const Entry entry{selection_key(line(offsets[i])), static_cast<std::uint32_t>(first + row),
                          static_cast<std::uint32_t>(tile.cols.begin + offsets[i])};
        if (list.has_last && !Entry::before(entry, list.last)) continue;
        list.entries[list.size++] = entry;
        if (list.size == capacity_ && capacity_ > count_) keep_best(list);
      }
    }
  }

  void keep_best(List& list) {
    std::nth_element(list.entries, list.entries + count_ - 1, list.entries + list.size, Entry::before);
    list.size = count_;
    list.last = list.entries[count_ - 1];
    list.has_last = true;
    list.limit = limit_of(list.last.key);
  }

  std::int64_t total() const {
    std::int64_t sum = 0;
    for (std::int64_t task = 0; task < tasks_; ++task) sum += lists_[task].size;
    return sum;
  }

  // Bit by bit, to a key that at least `count` elements have or come before, and not many more.
  void raise_bar() {
    if (total() <= 2 * count_) return;
    Key bar = 0;
    for (int bit = 8 * sizeof(Key) - 1; bit >= 0; --bit) {
      const Key higher = bar | Key(1) << bit;
      const std::int64_t passed = count_from(higher);
      if (passed < count_) continue;
      bar = higher;
      if (passed <= count_ + count_ / 8) break;
    }
    parallel_(tasks_, [&](std::int64_t task) {
      List& list = lists_[task];
      const auto out = [&](const Entry& entry) { return entry.key < bar; };
      list.size = std::remove_if(list.entries, list.entries + list.size, out) - list.entries;
      list.limit = std::max(list.limit, limit_of(bar));
    });
  }

  std::int64_t count_from(Key key) {
    parallel_(tasks_, [&](std::int64_t task) {
      List& list = lists_[task];
      list.passed = std::count_if(list.entries, list.entries + list.size,
                                  [&](const Entry& entry) { return entry.key >= key; });
    });
    std::int64_t sum = 0;
    for (std::int64_t task = 0; task < tasks_; ++task) sum += lists_[task].passed;
    return sum;
  }

  void finish() {
    Entry* const all = aligned<Entry>(entries_.data());
    std::int64_t kept = 0;
    for (std::int64_t task = 0; task < tasks_; ++task)
      kept = std::copy_n(lists_[task].entries, lists_[task].size, all + kept) - all;
    if (kept > count_) std::nth_element(all, all + count_ - 1, all + kept, Entry::before);
    kept = std::min(kept, count_);
    const Entry* const last = std::max_element(all, all + kept, Entry::before);
    *all_.smallest = kept == 0 ? 0.0 : static_cast<double>(selection_value(last->key));
    order(all, kept, all + kept);
  }

  // By rows, then each row by columns.
  void order(const Entry* all, std::int64_t kept, Entry* by_row) {
    const std::int64_t rows = all_.x.rows;
    std::int32_t* const starts = all_.starts.template as<std::int32_t>();
    std::fill_n(starts, rows + 1, 0);
    for (std::int64_t i = 0; i < kept; ++i) ++starts[all[i].row + 1];
    for (std::int64_t row = 0; row < rows; ++row) starts[row + 1] += starts[row];
    for (std::int64_t i = 0; i < kept; ++i) by_row[starts[all[i].row]++] = all[i];
    std::copy_backward(starts, starts + rows, starts + rows + 1);
    starts[0] = 0;
    const Even blocks = Even::at_most(rows, kFinishedRows);
    parallel_(blocks.parts, [&](std::int64_t block) {
      for (std::int64_t row = blocks[block].begin; row < blocks[block].end; ++row) {
        std::sort(by_row + starts[row], by_row + starts[row + 1],
                  [](const Entry& a, const Entry& b) { return a.col < b.col; });
        for (std::int64_t i = starts[row]; i < starts[row + 1]; ++i) {
          all_.columns.template as<std::int32_t>()[i] = static_cast<std::int32_t>(by_row[i].col);
          all_.values.template as<S>()[i] = selection_value(by_row[i].key);
        }
      }
    });
  }

  const BatchSelection& all_;
  const Precision precision_;
  Scratch& scratch_;
  const Parallel& parallel_;
  const std::int64_t tasks_, count_, capacity_;
  const ScoreLines<S> line_;
  Scratch::Lease entries_;  // [tasks_ x capacity_], and those that are kept once more
  Scratch::Lease list_memory_;
  List* const lists_;  // [tasks_]
};

}  // namespace

void encode_select_batch(const BatchSelection& selection, Precision precision, Scratch& scratch,
                         const Parallel& parallel) {
  FS_REQUIRE(selection.count >= 0, "count: expected 0 or more, got ", selection.count);
  FlushDenormals flush;
  with_scalar(selection.x.dtype,
              [&](auto s) { SelectBatch<decltype(s)>(selection, precision, scratch, parallel).run(); });
}

}  // namespace fastsae::cpu
