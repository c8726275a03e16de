#include "cpu/select_tiles.h"

#include <algorithm>
#include <type_traits>

#include "cpu/bf16.h"
#include "cpu/blas.h"
#include "cpu/panels.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kMostRows = 4096;
constexpr std::int64_t kNearX = 32 << 20;     // bytes of x
constexpr std::int64_t kTaskTerms = 1 << 18;  // multiply-adds that are worth waking a thread for
constexpr std::int64_t kPackedStrips = 128, kPackedBytes = 2 << 20;
constexpr std::int64_t kStripPiece = 8;  // strips that a task packs
constexpr std::int64_t kFewRows = 3;     // so few are multiplied one by one: packing would take longer

// Each of these makes tiles in one way. Columns come in slabs, a slab is packed in pieces and consists of units; a
// tile has at most tile_rows and tile_units.

template <class S>
class PanelScores {
 public:
  static constexpr std::int64_t row_unit = 8, tile_rows = 128;

  PanelScores(const Tensor& x, const Tensor& weight)
      : product_({false, true, x.rows, weight.rows, x.cols, x.as<S>(), x.stride, weight.as<S>(),
                  weight.stride, false, nullptr, 0},
                 true) {
    const Range first = product_.cols(0, {0, 1});
    tile_units = std::max<std::int64_t>(1, 256 / (first.end - first.begin));
  }

  std::size_t doubles() const { return doubles_for<S>(product_.packed_size()); }
  void use(double* memory) { packed_ = aligned<S>(memory); }
  std::int64_t slabs() const { return product_.chunks(); }
  std::int64_t pieces(std::int64_t slab) const { return product_.pieces(slab); }
  void pack(std::int64_t slab, std::int64_t piece) const { product_.pack(slab, piece, packed_); }
  std::int64_t units(std::int64_t slab) const { return product_.panels(slab); }
  Range cols(std::int64_t slab, Range units) const { return product_.cols(slab, units); }
  void multiply(std::int64_t slab, Range rows, Range units, S* to, std::int64_t stride) const {
    product_.run_to(slab, rows, units, packed_, to, stride);
  }

  std::int64_t tile_units;

 private:
  const PanelProduct<S> product_;
  S* packed_ = nullptr;
};

// x is packed once, with the first slab.
class Bf16Scores {
 public:
  static constexpr std::int64_t row_unit = kStrip, tile_rows = 256, tile_units = kMostTileCols / kStrip;

  Bf16Scores(const Tensor& x, const Tensor& weight)
      : x_(x),
        weight_(weight),
        strip_(strip_size(x.cols)),
        left_{strips(x.rows), strips(x.rows)},
        slabs_(Even::at_most(
            strips(weight.rows),
            std::max<std::int64_t>(kStripPiece,
                                   kPackedBytes / (strip_ * static_cast<std::int64_t>(sizeof(Bf16)))))) {}

  std::size_t doubles() const { return doubles_for<Bf16>((left_.count + slabs_.longest()) * strip_); }
  void use(double* memory) {
    packed_x_ = aligned<Bf16>(memory);
    packed_ = packed_x_ + left_.count * strip_;
  }
  std::int64_t slabs() const { return slabs_.parts; }
  std::int64_t pieces(std::int64_t slab) const {
    return Even::at_most(units(slab), kStripPiece).parts + (slab == 0 ? left_pieces().parts : 0);
  }
  void pack(std::int64_t slab, std::int64_t piece) const {
    const Even right = Even::at_most(units(slab), kStripPiece);
    if (piece < right.parts) return pack(weight_, slabs_[slab].begin, right[piece], true, packed_);
    pack(x_, 0, left_pieces()[piece - right.parts], false, packed_x_);
  }
  std::int64_t units(std::int64_t slab) const { return slabs_[slab].end - slabs_[slab].begin; }
  Range cols(std::int64_t slab, Range units) const {
    const std::int64_t first = slabs_[slab].begin;
    return {(first + units.begin) * kStrip, std::min(weight_.rows, (first + units.end) * kStrip)};
  }
  void multiply(std::int64_t slab, Range rows, Range units, float* to, std::int64_t stride) const {
    const Range across = cols(slab, units);
    unit_.multiply_packed({packed_x_ + rows.begin / kStrip * strip_, packed_ + units.begin * strip_, strip_,
                           rows.end - rows.begin, across.end - across.begin, x_.cols, to, stride, false});
  }

 private:
  static std::int64_t strips(std::int64_t count) { return (count + kStrip - 1) / kStrip; }
  Even left_pieces() const { return Even::at_most(left_.count, kStripPiece); }
  void pack(const Tensor& from, std::int64_t before, Range some, bool right, Bf16* to) const {
    const std::int64_t first = (before + some.begin) * kStrip;
    unit_.pack(Lines{from.as<float>(), from.stride, true}.at(first, 0), right,
               std::min((some.end - some.begin) * kStrip, from.rows - first), x_.cols,
               to + some.begin * strip_);
  }

  const Bf16Unit& unit_ = bf16_units().front();
  const Tensor x_, weight_;
  const std::int64_t strip_;  // numbers of a packed one
  const Even left_, slabs_;   // strips
  Bf16 *packed_x_ = nullptr, *packed_ = nullptr;
};

// The bits of the BLAS depend on what is multiplied at once: that is cut by the shape alone.
template <class S>
class BlasScores {
 public:
  static constexpr std::int64_t row_unit = 512, tile_rows = row_unit, tile_units = 1;

  BlasScores(const Tensor& x, const Tensor& weight, std::int64_t lanes)
      : x_(x),
        weight_(weight),
        slabs_(Even::at_most((weight.rows + kMostTileCols - 1) / kMostTileCols, 2 * lanes)) {}

  std::size_t doubles() const { return 0; }
  void use(double*) {}
  std::int64_t slabs() const { return slabs_.parts; }
  std::int64_t pieces(std::int64_t) const { return 0; }
  void pack(std::int64_t, std::int64_t) const {}
  std::int64_t units(std::int64_t slab) const { return slabs_[slab].end - slabs_[slab].begin; }
  Range cols(std::int64_t slab, Range units) const {
    const std::int64_t first = slabs_[slab].begin;
    return {(first + units.begin) * kMostTileCols,
            std::min(weight_.rows, (first + units.end) * kMostTileCols)};
  }
  void multiply(std::int64_t slab, Range rows, Range units, S* to, std::int64_t stride) const {
    const Range across = cols(slab, units);
    const std::int64_t count = rows.end - rows.begin, cols = across.end - across.begin;
    const S* x = x_.as<S>() + rows.begin * x_.stride;
    const S* w = weight_.as<S>() + across.begin * weight_.stride;
    if (count > kFewRows)
      return gemm(false, true, count, cols, x_.cols, x, x_.stride, w, weight_.stride, S(0), to, stride);
    for (std::int64_t row = 0; row < count; ++row) {
      S* line = to + row * stride;
      std::fill_n(line, cols, S(0));
      gemv(cols, x_.cols, w, weight_.stride, x + row * x_.stride, line);
    }
  }

 private:
  const Tensor x_, weight_;
  const Even slabs_;  // tiles' columns
};

template <class S>
std::int64_t row_unit(Provider provider) {
  return provider == Provider::panels ? PanelScores<S>::row_unit
         : provider == Provider::bf16 ? Bf16Scores::row_unit
                                      : BlasScores<S>::row_unit;
}

}  // namespace

template <class S>
std::int64_t ScoreTiles<S>::most_rows(std::int64_t width) {
  const std::int64_t rows = kNearX / (width * static_cast<std::int64_t>(sizeof(S)));
  return std::clamp<std::int64_t>(rows, 512, kMostRows);
}

template <class S>
Provider score_provider(const Tensor& x, const Tensor& weight, Precision precision) {
  if (precision == Precision::bf16 && std::is_same_v<S, float>) return Provider::bf16;
  return provider_for(false, true, x.rows, weight.rows, x.cols, weight.dtype);
}

template <class S>
ScoreTiles<S>::ScoreTiles(const Tensor& x, const Tensor& weight, Provider provider, std::int64_t most_tasks,
                          std::int64_t most_lanes)
    : x_(x),
      weight_(weight),
      provider_(provider),
      rows_(x.rows, (x.rows + row_unit<S>(provider_) - 1) / row_unit<S>(provider_),
            std::min<std::int64_t>(row_unit<S>(provider_), 16)) {
  const std::int64_t tasks =
      std::clamp<std::int64_t>(x.rows * weight.rows * x.cols / kTaskTerms, 1, most_tasks);
  shares_ = std::min(tasks, rows_.parts);
  lanes_ = std::clamp<std::int64_t>(tasks / shares_, 1, most_lanes);
}

template <class S>
template <class Scores>
void ScoreTiles<S>::run_by(const Scores& of, Scratch& scratch, const Parallel& parallel, const Visit& visit,
                           const std::function<void()>& between) const {
  constexpr std::int64_t kStride = kMostTileCols + 64 / sizeof(S);
  constexpr std::int64_t tile_size = Scores::tile_rows * kStride;
  Scratch::Lease tiles(scratch, doubles_for<S>(tasks() * tile_size)), packed(scratch, of.doubles());
  Scores scores = of;
  scores.use(packed.data());
  for (std::int64_t slab = 0; slab < scores.slabs(); ++slab) {
    parallel(scores.pieces(slab), [&](std::int64_t piece) { scores.pack(slab, piece); });
    parallel(tasks(), [&](std::int64_t task) {
      const std::int64_t lane = task % lanes_;
      const Range mine = Even{rows_.parts, shares_}[task / lanes_];
      const Range units = Even{scores.units(slab), lanes_}[lane];
      S* const to = aligned<S>(tiles.data()) + task * tile_size;
      const Even across = Even::at_most(units.end - units.begin, scores.tile_units);
      const Even down = Even::at_most(mine.end - mine.begin, Scores::tile_rows / rows_.size);
      for (std::int64_t i = 0; i < across.parts; ++i) {
        const Range some{units.begin + across[i].begin, units.begin + across[i].end};
        for (std::int64_t j = 0; j < down.parts; ++j) {
          const Range rows{rows_[mine.begin + down[j].begin].begin, rows_[mine.begin + down[j].end - 1].end};
          scores.multiply(slab, rows, some, to, kStride);
          visit({task, lane, rows, scores.cols(slab, some), to, kStride});
        }
      }
    });
    if (between) between();
  }
}

template <class S>
void ScoreTiles<S>::run(Scratch& scratch, const Parallel& parallel, const Visit& visit,
                        const std::function<void()>& between) const {
  if constexpr (std::is_same_v<S, float>) {
    if (provider_ == Provider::bf16)
      return run_by(Bf16Scores(x_, weight_), scratch, parallel, visit, between);
  }
  if (provider_ == Provider::panels)
    return run_by(PanelScores<S>(x_, weight_), scratch, parallel, visit, between);
  run_by(BlasScores<S>(x_, weight_, lanes_), scratch, parallel, visit, between);
}

template Provider score_provider<float>(const Tensor&, const Tensor&, Precision);
template Provider score_provider<double>(const Tensor&, const Tensor&, Precision);
template class ScoreTiles<float>;
template class ScoreTiles<double>;

}  // namespace fastsae::cpu
