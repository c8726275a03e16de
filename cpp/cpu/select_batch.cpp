// The largest elements of a whole matrix. Each task keeps a list of what comes before a bar; now and then the bar rises to
// the count-th best of all lists, and a list that is full keeps the `count` best of its own.
//
// With rounded scores (select_rounded.h) a list has what may come before a bar that `count` elements are certain to reach,
// and at the end the values of these in float32.
#include <algorithm>
#include <functional>
#include <limits>

#include "core/error.h"
#include "cpu/float_mode.h"
#include "cpu/score_bounds.h"
#include "cpu/select.h"
#include "cpu/select_filter.h"
#include "kernels/list.h"
#include "kernels/selection.h"

namespace fastsae::cpu {
namespace {

constexpr double kUnderHint = 0.875;         // of the hint, where the bar starts
constexpr std::int64_t kFinishedRows = 256;  // by one task

// An element; of a rounded one the key is that of the least that it may be.
template <class S, bool kRounded>
struct BatchEntry {
  decltype(selection_key(S())) key;
  std::uint32_t row, col;
  static bool before(const BatchEntry& a, const BatchEntry& b) {
    if (a.key != b.key) return a.key > b.key;
    return a.row != b.row ? a.row < b.row : a.col < b.col;
  }
};
template <class S>
struct BatchEntry<S, true> : BatchEntry<S, false> {
  S most;
};

template <class S, bool kRounded>
class SelectBatch {
  using Key = decltype(selection_key(S()));
  using Entry = BatchEntry<S, kRounded>;
  static constexpr std::int64_t kRoom = kRounded ? 8 : 2;  // of a list, for each that is wanted

  struct List {
    Entry* entries;
    std::int64_t size;
    Entry last;  // what does not come before it is out, once there is one
    bool has_last;
    S limit;                  // what is not greater is out
    std::int64_t passed = 0;  // when they were last compared with a key
    bool open = false;        // of rounded ones there are too many
  };

 public:
  SelectBatch(const BatchSelection& selection, Provider provider, Scratch& scratch, const Parallel& parallel,
              const ScoreBounds* bounds = nullptr)
      : all_(selection),
        provider_(provider),
        scratch_(scratch),
        parallel_(parallel),
        tasks_(threads_here()),
        count_(selection.count),
        capacity_(std::min(kRoom * count_, selection.x.rows * selection.weight.rows)),
        bounds_(bounds),
        entries_(scratch, doubles_for<Entry>(tasks_ * capacity_ + (kRounded ? capacity_ : count_))),
        list_memory_(scratch, doubles_for<List>(tasks_)),
        lists_(aligned<List>(list_memory_.data())) {
    std::fill_n(lists_, tasks_, List{});
  }

  // False where rounding left too much open: then nothing is written.
  bool run() {
    const double start = all_.hint == nullptr ? 0 : kUnderHint * *all_.hint;
    const Key least = selection_key(S(0)) + 1;
    Key bar = start > 0 && start < std::numeric_limits<S>::max()
                  ? std::max(least, selection_key(static_cast<S>(start)))
                  : least;
    if (count_ > 0) collect(bar);
    if (!open_ && total() < count_ && bar > least) collect(least);
    if (!open_) finish();
    return !open_;
  }
  // How many were computed of those that were rounded; all where that left too much open.
  std::int64_t computed() const { return open_ ? all_.x.rows * all_.weight.rows : computed_; }

 private:
  // All that come before the bar, or the best `count` of them and more.
  void collect(Key bar) {
    kept_ = 0;
    for (std::int64_t task = 0; task < tasks_; ++task)
      lists_[task] = {aligned<Entry>(entries_.data()) + task * capacity_, 0, {}, false, limit_of(bar)};
    const std::int64_t most = ScoreTiles<S>::most_rows(all_.x.cols);
    for (std::int64_t first = 0; first < all_.x.rows; first += most) {
      const std::int64_t rows = std::min(most, all_.x.rows - first);
      const ScoreLines<S> lines = lines_from(first);
      const auto visit = [&](const ScoreTile<S>& tile) { scan(lines, tile, first); };
      ScoreTiles<S>(all_.x.slice_rows(first, rows), all_.weight, provider_, tasks_, tasks_)
          .run(scratch_, parallel_, std::cref(visit), [this] { raise_bar(2 * std::max(count_, kept_)); });
    }
    if constexpr (kRounded) compute(bar);
  }

  ScoreLines<S> lines_from(std::int64_t row) const {
    if constexpr (kRounded)
      return {all_.bias, all_.scale, bounds_->reach() + row, bounds_->margin()};
    else
      return {all_.bias, all_.scale};
  }

  // The greatest that is less than a key's value; those of equal value may still come before it.
  static S limit_of(Key bar) {
    return bar == selection_key(std::numeric_limits<S>::quiet_NaN()) ? std::numeric_limits<S>::infinity()
                                                                     : selection_value(bar - 1);
  }

  void scan(const ScoreLines<S>& lines, const ScoreTile<S>& tile, std::int64_t first) {
    std::int32_t offsets[kMostTileCols];
    List& list = lists_[tile.task];
    if (list.open) return;
    for (std::int64_t row = tile.rows.begin; row < tile.rows.end; ++row) {
      const Scored<S> line = lines.of(tile, row);
      const std::int64_t found = filter(line, list.limit, offsets);
      for (std::int64_t i = 0; i < found && !list.open; ++i) {
        const Entry entry = entry_of(line, offsets[i], first + row, tile.cols.begin);
        if constexpr (kRounded) {
          if (entry.most <= list.limit) continue;
        } else {
          if (list.has_last && !Entry::before(entry, list.last)) continue;
        }
        list.entries[list.size++] = entry;
        if (list.size == capacity_ && capacity_ > count_) keep_best(list);
      }
    }
  }

  static Entry entry_of(const Scored<S>& line, std::int64_t at, std::int64_t row, std::int64_t first_col) {
    const auto y = static_cast<std::uint32_t>(row), x = static_cast<std::uint32_t>(first_col + at);
    if constexpr (kRounded) {
      const S least = line.least(at);
      return {{selection_key(least == least ? least : -std::numeric_limits<S>::infinity()), y, x},
              line.most(at)};
    } else {
      return {selection_key(line(at)), y, x};
    }
  }

  // Those go that come after a bar.
  static void drop(List& list, Key bar) {
    const S limit = limit_of(bar);
    Entry* const end = std::remove_if(list.entries, list.entries + list.size, [&](const Entry& entry) {
      if constexpr (kRounded)
        return entry.most <= limit;
      else
        return entry.key < bar;
    });
    list.size = end - list.entries;
    list.limit = std::max(list.limit, limit);
  }

  void keep_best(List& list) {
    std::nth_element(list.entries, list.entries + count_ - 1, list.entries + list.size, Entry::before);
    if constexpr (kRounded) {
      drop(list, std::max(list.entries[count_ - 1].key, selection_key(S(0)) + 1));
      list.open = list.size >= capacity_ - capacity_ / 8;
      return;
    }
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
  void raise_bar(std::int64_t from) {
    if (total() <= from) return;
    Key bar = 0;
    for (int bit = 8 * sizeof(Key) - 1; bit >= 0; --bit) {
      const Key higher = bar | Key(1) << bit;
      const std::int64_t passed = count_from(higher);
      if (passed < count_) continue;
      bar = higher;
      if (passed <= count_ + count_ / 8) break;
    }
    if (kRounded) bar = std::max(bar, selection_key(S(0)) + 1);
    parallel_(tasks_, [&](std::int64_t task) { drop(lists_[task], bar); });
    kept_ = total();
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

  // The elements of all lists, which may be among the best, become those of one list that come before the bar.
  void compute(Key bar) {
    raise_bar(count_);
    for (std::int64_t task = 0; task < tasks_; ++task) open_ |= lists_[task].open;
    open_ |= total() > capacity_;
    if (open_) return;
    computed_ += total();
    Entry* const all = aligned<Entry>(entries_.data()) + tasks_ * capacity_;
    sort_by_rows(all, [&](const auto& each) {
      for (std::int64_t task = 0; task < tasks_; ++task)
        std::for_each(lists_[task].entries, lists_[task].entries + lists_[task].size, each);
    });
    const std::int32_t* const starts = all_.starts.template as<std::int32_t>();
    const Even blocks = Even::at_most(all_.x.rows, kFinishedRows);
    parallel_(blocks.parts, [&](std::int64_t block) {
      for (std::int64_t row = blocks[block].begin; row < blocks[block].end; ++row)
        compute_row(row, all + starts[row], all + starts[row + 1]);
    });
    std::fill_n(lists_, tasks_, List{});
    lists_[0].entries = all;
    lists_[0].size =
        std::remove_if(all, all + starts[all_.x.rows], [&](const Entry& entry) { return entry.key < bar; }) -
        all;
  }

  void compute_row(std::int64_t row, Entry* begin, Entry* end) const {
    std::int32_t columns[kMostTileCols];
    S scores[kMostTileCols];
    for (; begin < end; begin += kMostTileCols) {
      const std::int64_t count = std::min<std::int64_t>(kMostTileCols, end - begin);
      for (std::int64_t i = 0; i < count; ++i) columns[i] = static_cast<std::int32_t>(begin[i].col);
      score_elements(all_, row, columns, count, scores);
      for (std::int64_t i = 0; i < count; ++i) begin[i].key = selection_key(scores[i]);
    }
  }

  // Copies entries by rows, whatever their order in a row, and writes where each row starts.
  template <class ForEach>
  void sort_by_rows(Entry* to, const ForEach& for_each) const {
    const std::int64_t rows = all_.x.rows;
    std::int32_t* const starts = all_.starts.template as<std::int32_t>();
    std::fill_n(starts, rows + 1, 0);
    for_each([&](const Entry& entry) { ++starts[entry.row + 1]; });
    for (std::int64_t row = 0; row < rows; ++row) starts[row + 1] += starts[row];
    for_each([&](const Entry& entry) { to[starts[entry.row]++] = entry; });
    std::copy_backward(starts, starts + rows, starts + rows + 1);
    starts[0] = 0;
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
    sort_by_rows(by_row, [&](const auto& each) { std::for_each(all, all + kept, each); });
    const std::int32_t* const starts = all_.starts.template as<std::int32_t>();
    const Even blocks = Even::at_most(all_.x.rows, kFinishedRows);
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
  const Provider provider_;
  Scratch& scratch_;
  const Parallel& parallel_;
  const std::int64_t tasks_, count_, capacity_;
  const ScoreBounds* const bounds_;
  Scratch::Lease entries_;  // [tasks_ x capacity_], and those that are kept once more
  Scratch::Lease list_memory_;
  List* const lists_;      // [tasks_]
  std::int64_t kept_ = 0;  // when the bar was raised last
  std::int64_t computed_ = 0;
  bool open_ = false;
};

}  // namespace

void encode_select_batch(const BatchSelection& selection, Precision precision, RoundingTrials& trials,
                         Scratch& scratch, const Parallel& parallel) {
  FS_REQUIRE(selection.count >= 0, "count: expected 0 or more, got ", selection.count);
  FlushDenormals flush;
  const Tensor &x = selection.x, &weight = selection.weight;
  with_scalar(x.dtype, [&](auto s) {
    using S = decltype(s);
    const Provider provider = score_provider<S>(x, weight, precision);
    if constexpr (std::is_same_v<S, float>) {
      const std::int64_t k = selection.count / std::max<std::int64_t>(1, x.rows) + 1;
      if (provider == Provider::panels && trials.wanted(x, weight, k)) {
        const ScoreBounds bounds(x, weight, selection.bias, scratch, parallel);
        SelectBatch<S, true> rounded(selection, Provider::bf16, scratch, parallel, &bounds);
        const bool made = rounded.run();
        trials.report(rounded.computed(), x.rows * weight.rows);
        if (made) return;
      }
    }
    SelectBatch<S, false>(selection, provider, scratch, parallel).run();
  });
}

}  // namespace fastsae::cpu
