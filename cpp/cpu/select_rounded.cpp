#include "cpu/select_rounded.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "cpu/bf16.h"
#include "cpu/score_bounds.h"
#include "cpu/select_rows.h"

namespace fastsae::cpu {
namespace {

constexpr int kPause = 64;
// Where it pays, as measured: packing the weights, filtering a row, and computing an element that is kept, which takes
// as long as several of a product.
constexpr std::int64_t kFewestRows = 256, kLeastWidth = 128, kFewestLatents = 2048,
                       kTermsOfElement = 64 << 10;
constexpr std::int64_t kMostShare = 32;
constexpr std::int64_t kFirstLook = 256;  // elements of a list that has not been looked through
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::int64_t capacity_for(std::int64_t k, std::int64_t latents) {
  return std::max(4 * k, std::clamp<std::int64_t>(2 * latents / kMostShare, 512, 1024));
}

class SelectRounded {
 public:
  SelectRounded(const Selection& selection, Scratch& scratch, const Parallel& parallel)
      : all_(selection),
        scratch_(scratch),
        parallel_(parallel),
        tasks_(threads_here()),
        k_(selection.values.cols),
        capacity_(capacity_for(k_, selection.weight.rows)),
        first_look_(std::max(kFirstLook, 2 * k_)),
        bounds_(selection.x, selection.weight, selection.bias, scratch, parallel) {}

  // Writes the numbers of the rows that stay open, and says how many there are.
  std::int64_t run(std::int32_t* open) {
    const std::int64_t most =
        std::clamp<std::int64_t>(kItemBytes / (capacity_ * static_cast<std::int64_t>(sizeof(Candidate))), 1,
                                 ScoreTiles<float>::most_rows(all_.x.cols));
    std::int64_t count = 0;
    for (std::int64_t first = 0; first < all_.x.rows; first += most)
      count += run(first, std::min(most, all_.x.rows - first), open + count);
    return count;
  }
  // In the other rows.
  std::int64_t computed() const { return computed_; }

 private:
  // An element whose value is known to lie between two.
  struct Candidate {
    float least, most;
    std::int32_t column;
  };
  struct Row {
    float limit = std::numeric_limits<float>::quiet_NaN();  // below what k at least are certain to reach
    std::int64_t count = 0;
    std::int64_t next = 0;  // how many there are when they are looked through
    bool open = false;      // there are too many
  };

  std::int64_t run(std::int64_t first, std::int64_t rows, std::int32_t* open) {
    const Tensor x = all_.x.slice_rows(first, rows);
    const ScoreLines<float> lines(all_.bias, all_.scale, bounds_.reach() + first, bounds_.margin());
    const ScoreTiles<float> tiles(x, all_.weight, Provider::bf16, tasks_,
                                  std::max<std::int64_t>(1, all_.weight.rows / (2 * capacity_)));
    const std::int64_t lists = rows * tiles.lanes();
    Scratch::Lease candidates(scratch_, doubles_for<Candidate>(lists * capacity_)),
        states(scratch_, doubles_for<Row>(lists));
    candidates_ = aligned<Candidate>(candidates.data());
    rows_ = aligned<Row>(states.data());
    std::fill_n(rows_, lists, Row{.next = first_look_});
    const auto visit = [&](const ScoreTile<float>& tile) {
      for (std::int64_t row = tile.rows.begin; row < tile.rows.end; ++row)
        scan(lines.of(tile, row), tile.cols.begin, tile.lane * rows + row);
    };
    tiles.run(scratch_, parallel_, std::cref(visit));
    const Even blocks = Even::at_most(rows, kFinishedRows);
    Scratch::Lease items(scratch_, doubles_for<Item<float>>(blocks.parts * capacity_));
    parallel_(blocks.parts, [&](std::int64_t block) {
      Item<float>* mine = aligned<Item<float>>(items.data()) + block * capacity_;
      for (std::int64_t row = blocks[block].begin; row < blocks[block].end; ++row) {
        for (std::int64_t list = row + rows; list < lists; list += rows) join(row, list);
        keep_possible(row);
        rows_[row].open |= rows_[row].count < k_;
        if (!rows_[row].open) finish(row, first + row, mine);
      }
    });
    std::int64_t count = 0;
    for (std::int64_t row = 0; row < rows; ++row) {
      open[count] = static_cast<std::int32_t>(first + row);
      count += rows_[row].open ? 1 : 0;
      computed_ += rows_[row].open ? 0 : rows_[row].count;
    }
    return count;
  }

  void scan(const Scored<float>& line, std::int64_t first_column, std::int64_t list) {
    if (rows_[list].open) return;
    std::int32_t offsets[kMostTileCols];
    const std::int64_t found = filter(line, rows_[list].limit, offsets);
    for (std::int64_t i = 0; i < found; ++i) {
      const std::int64_t at = offsets[i];
      add(list, {line.least(at), line.most(at), static_cast<std::int32_t>(first_column + at)});
    }
  }

  void add(std::int64_t list, Candidate candidate) {
    Row& row = rows_[list];
    if (candidate.most <= row.limit || row.open) return;
    if (!(candidate.least >= -kInfinity)) candidate.least = -kInfinity;  // not a number
    candidates_[list * capacity_ + row.count++] = candidate;
    if (row.count == row.next) keep_possible(list);
  }

  void join(std::int64_t list, std::int64_t other) {
    rows_[list].open |= rows_[other].open;
    for (std::int64_t i = 0; i < rows_[other].count; ++i) add(list, candidates_[other * capacity_ + i]);
  }

  // Those stay that may be among the k best.
  void keep_possible(std::int64_t list) {
    Row& row = rows_[list];
    Candidate* const all = candidates_ + list * capacity_;
    if (row.open || row.count < k_) return;
    std::nth_element(all, all + k_ - 1, all + row.count,
                     [](const Candidate& a, const Candidate& b) { return a.least > b.least; });
    const float bar = all[k_ - 1].least;
    if (bar > -kInfinity) row.limit = bar - (std::abs(bar) * 0x1p-20f + 0x1p-100f);
    const Candidate* end =
        std::remove_if(all, all + row.count, [&](const Candidate& one) { return one.most <= row.limit; });
    row.count = end - all;
    row.open = row.count > capacity_ / 2;
    row.next = std::min(capacity_, std::max(first_look_, 2 * row.count));
  }

  void finish(std::int64_t list, std::int64_t row, Item<float>* items) const {
    std::int32_t columns[kMostTileCols];
    float scores[kMostTileCols];
    for (std::int64_t first = 0; first < rows_[list].count; first += kMostTileCols) {
      const std::int64_t count = std::min<std::int64_t>(kMostTileCols, rows_[list].count - first);
      for (std::int64_t i = 0; i < count; ++i) columns[i] = candidates_[list * capacity_ + first + i].column;
      score_elements(all_, row, columns, count, scores);
      for (std::int64_t i = 0; i < count; ++i) items[first + i] = item_of(scores[i], columns[i]);
    }
    write_best<float>(items, rows_[list].count, row, all_);
  }

  const Selection& all_;
  Scratch& scratch_;
  const Parallel& parallel_;
  const std::int64_t tasks_, k_, capacity_, first_look_;
  const ScoreBounds bounds_;
  Candidate* candidates_ = nullptr;  // [lanes x rows x capacity_]
  Row* rows_ = nullptr;              // [lanes x rows]
  std::int64_t computed_ = 0;
};

// In full, side by side.
void select_open_rows(const Selection& all, const std::int32_t* open, std::int64_t count, Scratch& scratch,
                      const Parallel& parallel) {
  const std::int64_t width = all.x.cols, k = all.values.cols;
  Scratch::Lease lease(scratch, doubles_for<float>(count * (width + 2 * k)));
  float* const x = aligned<float>(lease.data());
  float* const values = x + count * width;
  auto* const indices = reinterpret_cast<std::int32_t*>(values + count * k);
  for (std::int64_t i = 0; i < count; ++i)
    std::copy_n(all.x.as<float>() + open[i] * all.x.stride, width, x + i * width);
  Selection some = all;
  some.x = {x, count, width, width, DType::f32};
  some.values = {values, count, k, k, DType::f32};
  some.indices = {indices, count, k, k, DType::i32};
  SelectRows<float>(some, Provider::panels, scratch, parallel).run();
  for (std::int64_t i = 0; i < count; ++i) {
    std::copy_n(values + i * k, k, all.values.as<float>() + open[i] * all.values.stride);
    std::copy_n(indices + i * k, k, all.indices.as<std::int32_t>() + open[i] * all.indices.stride);
  }
}

}  // namespace

bool RoundingTrials::wanted(const Tensor& x, const Tensor& weight, std::int64_t k) {
  if (bf16_units().empty() || x.rows < kFewestRows || x.cols < kLeastWidth || weight.rows < kFewestLatents ||
      weight.rows * x.cols < kTermsOfElement * k)
    return false;
  const int pause = pause_.load(std::memory_order_relaxed);
  if (pause > 0) pause_.store(pause - 1, std::memory_order_relaxed);
  return pause == 0;
}

void RoundingTrials::report(std::int64_t computed, std::int64_t all) {
  if (computed > all / kMostShare) pause_.store(kPause, std::memory_order_relaxed);
}

void encode_select_rounded(const Selection& selection, RoundingTrials& trials, Scratch& scratch,
                           const Parallel& parallel) {
  const std::int64_t rows = selection.x.rows;
  Scratch::Lease lease(scratch, doubles_for<std::int32_t>(rows));
  auto* const open = aligned<std::int32_t>(lease.data());
  SelectRounded rounded(selection, scratch, parallel);
  const std::int64_t count = rounded.run(open), latents = selection.weight.rows;
  if (count > 0) select_open_rows(selection, open, count, scratch, parallel);
  trials.report(rounded.computed() + count * latents, rows * latents);
}

}  // namespace fastsae::cpu
