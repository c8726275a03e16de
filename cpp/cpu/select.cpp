// Rows go in panels, their columns in slabs. Each slab is multiplied in tiles and then scanned row by row while it is in
// cache: few elements come before the k-th best so far, and only those are looked at one by one.
//
// A tile depends on the shape alone. How many make a slab depends on the threads, and changes no bit: no two elements
// are equal in the order of kernels/selection.h, so what is selected is the same however the columns are cut.
#include "cpu/select.h"

#include <algorithm>
#include <functional>
#include <limits>
#include <type_traits>

#include "cpu/blas.h"
#include "cpu/float_mode.h"
#include "cpu/loops.h"
#include "cpu/partition.h"
#include "cpu/provider.h"
#include "kernels/selection.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kPanelRows = 1024;
constexpr std::int64_t kTileRows = 512, kTileCols = 512;  // BLAS packs its factors at 4 % of the tile's time
constexpr std::int64_t kFewRows = 3;  // so few are multiplied one by one: packing would take longer
constexpr std::int64_t kTilesPerThread = 2;
constexpr std::int64_t kScanRows = 16;  // rows that one task scans
constexpr std::int64_t kPiece = 512;    // columns that are compared with one limit
constexpr std::int64_t kLanes = 32;     // columns that are looked at together

// Offsets of the elements that are greater than the limit, or NaN; of all where the limit is NaN. `offsets` has room
// for `count`.
template <class S>
[[gnu::always_inline]] inline std::int64_t filter(const S* line, const S* bias, std::int64_t count, S limit,
                                                  std::int32_t* offsets) {
  using Flag = std::conditional_t<sizeof(S) == 4, std::int32_t, std::int64_t>;
  std::int64_t found = 0, i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    Flag any = 0;
    for (std::int64_t lane = 0; lane < kLanes; ++lane)
      any |= line[i + lane] + bias[i + lane] <= limit ? Flag(0) : Flag(1);
    if (any == 0) continue;
    for (std::int64_t lane = i; lane < i + kLanes; ++lane) {
      offsets[found] = static_cast<std::int32_t>(lane);
      found += line[lane] + bias[lane] <= limit ? 0 : 1;
    }
  }
  for (; i < count; ++i) {
    offsets[found] = static_cast<std::int32_t>(i);
    found += line[i] + bias[i] <= limit ? 0 : 1;
  }
  return found;
}

template <class S>
using Filter = std::int64_t (*)(const S* line, const S* bias, std::int64_t count, S limit,
                                std::int32_t* offsets);

template <class S>
std::int64_t run_baseline(const S* line, const S* bias, std::int64_t count, S limit, std::int32_t* offsets) {
  return filter(line, bias, count, limit, offsets);
}

#if defined(__x86_64__)
template <class S>
[[gnu::target("avx2,fma")]] std::int64_t run_avx2(const S* line, const S* bias, std::int64_t count, S limit,
                                                  std::int32_t* offsets) {
  return filter(line, bias, count, limit, offsets);
}
template <class S>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")]] std::int64_t
run_avx512(const S* line, const S* bias, std::int64_t count, S limit, std::int32_t* offsets) {
  return filter(line, bias, count, limit, offsets);
}
#else
template <class S>
constexpr Filter<S> run_avx2 = run_baseline<S>;
template <class S>
constexpr Filter<S> run_avx512 = run_baseline<S>;
#endif

template <class S>
Filter<S> find_filter() {
  return isa() == Isa::avx512 ? run_avx512<S> : isa() == Isa::avx2 ? run_avx2<S> : run_baseline<S>;
}

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

template <class S>
class EncodeSelect {
 public:
  EncodeSelect(const Selection& selection, Precision precision, Scratch& scratch, const Parallel& parallel)
      : all_(selection),
        precision_(precision),
        parallel_(parallel),
        k_(selection.values.cols),
        capacity_(std::max<std::int64_t>(2 * k_, 64)),
        latents_(selection.weight.rows),
        panel_rows_(std::clamp<std::int64_t>(selection.x.rows, 1, kPanelRows)),
        slab_cols_(slab_cols(panel_rows_, latents_)),
        lease_(scratch, bytes() / sizeof(double) + 1) {
    items_ = reinterpret_cast<Item<S>*>(lease_.data());
    rows_ = reinterpret_cast<Row*>(items_ + panel_rows_ * capacity_);
    slab_ = reinterpret_cast<S*>(rows_ + panel_rows_);
  }

  void run() {
    for (std::int64_t first = 0; first < all_.x.rows; first += kPanelRows) {
      const std::int64_t rows = std::min(kPanelRows, all_.x.rows - first);
      x_ = all_.x.slice_rows(first, rows);
      values_ = all_.values.slice_rows(first, rows);
      indices_ = all_.indices.slice_rows(first, rows);
      std::fill_n(rows_, rows, Row{});
      const std::int64_t blocks = (rows + kScanRows - 1) / kScanRows;
      for (column_ = 0; column_ < latents_; column_ += slab_cols_) {
        width_ = std::min(slab_cols_, latents_ - column_);
        const std::int64_t col_tiles = (width_ + kTileCols - 1) / kTileCols;
        parallel_(row_tiles().parts * col_tiles, [this](std::int64_t tile) { multiply(tile); });
        parallel_(blocks, [this](std::int64_t block) { each_row(block, &EncodeSelect::scan); });
      }
      parallel_(blocks, [this](std::int64_t block) { each_row(block, &EncodeSelect::finish); });
    }
  }

 private:
  // The best of a row so far: `count` items in no order, the k best among them.
  struct Row {
    Item<S> bar = 0;  // the k-th best when it was last looked for: what comes after it is out
    std::int64_t count = 0;
  };

  static std::int64_t slab_cols(std::int64_t rows, std::int64_t latents) {
    const std::int64_t elements = kTilesPerThread * num_threads() * kTileRows * kTileCols;
    return Cut::round_up(std::min(latents, (elements + rows - 1) / rows), kTileCols);
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(panel_rows_) *
           (static_cast<std::size_t>(capacity_) * sizeof(Item<S>) + sizeof(Row) +
            static_cast<std::size_t>(slab_cols_) * sizeof(S));
  }

  Cut row_tiles() const { return Cut(x_.rows, (x_.rows + kTileRows - 1) / kTileRows, Tiling::kGrain); }

  void multiply(std::int64_t tile) {
    const Cut rows = row_tiles();
    const Range r = rows[tile % rows.parts];
    const std::int64_t count = r.end - r.begin, col = tile / rows.parts * kTileCols;
    const std::int64_t cols = std::min(kTileCols, width_ - col);
    const Tensor& weight = all_.weight;
    const S* x = x_.as<S>() + r.begin * x_.stride;
    const S* w = weight.as<S>() + (column_ + col) * weight.stride;
    S* out = slab_ + r.begin * slab_cols_ + col;
    if (count > kFewRows || precision_ == Precision::bf16) {
      const Provider provider = precision_ == Precision::bf16
                                    ? Provider::bf16
                                    : provider_for(false, true, count, cols, x_.cols, weight.dtype);
      return cpu::multiply<S>(provider, {false, true, count, cols, x_.cols, x, x_.stride, w, weight.stride,
                                         false, out, slab_cols_});
    }
    for (std::int64_t row = 0; row < count; ++row) {
      S* line = out + row * slab_cols_;
      std::fill_n(line, cols, S(0));
      gemv(cols, x_.cols, w, weight.stride, x + row * x_.stride, line);
    }
  }

  void each_row(std::int64_t block, void (EncodeSelect::*work)(std::int64_t row)) {
    const std::int64_t end = std::min(x_.rows, (block + 1) * kScanRows);
    for (std::int64_t row = block * kScanRows; row < end; ++row) (this->*work)(row);
  }

  void scan(std::int64_t row) {
    static constexpr S kNoBias[kPiece] = {};
    std::int32_t offsets[kPiece];
    Row& state = rows_[row];
    for (std::int64_t first = 0; first < width_; first += kPiece) {
      const S* line = slab_ + row * slab_cols_ + first;
      const S* bias = all_.bias.exists() ? all_.bias.template as<S>() + column_ + first : kNoBias;
      const S limit = state.bar == 0 ? std::numeric_limits<S>::quiet_NaN() : value_of<S>(state.bar);
      const std::int64_t found = filter_(line, bias, std::min(kPiece, width_ - first), limit, offsets);
      for (std::int64_t i = 0; i < found; ++i) {
        const std::int32_t offset = offsets[i];
        add(row, item_of<S>(line[offset] + bias[offset], column_ + first + offset));
      }
    }
  }

  void add(std::int64_t row, Item<S> item) {
    Row& state = rows_[row];
    if (item <= state.bar) return;
    items_[row * capacity_ + state.count++] = item;
    if (state.count == capacity_) keep_best(row);
  }

  void keep_best(std::int64_t row) {
    Row& state = rows_[row];
    Item<S>* items = items_ + row * capacity_;
    std::nth_element(items, items + k_ - 1, items + state.count, std::greater<Item<S>>());
    state.count = k_;
    state.bar = items[k_ - 1];
  }

  void finish(std::int64_t row) {
    Item<S>* items = items_ + row * capacity_;
    if (rows_[row].count > k_) keep_best(row);
    std::sort(items, items + k_, std::greater<Item<S>>());
    for (std::int64_t i = 0; i < k_; ++i) {
      values_.template view<S>()(row, i) = value_of<S>(items[i]);
      indices_.template view<std::int32_t>()(row, i) = column_of<S>(items[i]);
    }
  }

  const Selection& all_;
  const Precision precision_;
  const Parallel& parallel_;
  const std::int64_t k_, capacity_, latents_, panel_rows_, slab_cols_;
  const Filter<S> filter_ = find_filter<S>();
  Scratch::Lease lease_;
  Item<S>* items_;               // [panel_rows_ x capacity_]
  Row* rows_;                    // [panel_rows_]
  S* slab_;                      // [panel_rows_ x slab_cols_], from column_ on
  Tensor x_, values_, indices_;  // of the panel
  std::int64_t column_ = 0, width_ = 0;
};

}  // namespace

void encode_select(const Selection& selection, Precision precision, Scratch& scratch,
                   const Parallel& parallel) {
  FlushDenormals flush;
  if (selection.x.dtype == DType::f32)
    EncodeSelect<float>(selection, precision, scratch, parallel).run();
  else
    EncodeSelect<double>(selection, precision, scratch, parallel).run();
}

}  // namespace fastsae::cpu
