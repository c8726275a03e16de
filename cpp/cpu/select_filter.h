// Which scores of a row come before a limit: the few operations that selection costs for each of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/select_tiles.h"

namespace fastsae::cpu {

// Part of a row of scores, which count as (score + bias) scale, and which are known to within `reach` margin.
template <class S>
struct Scored {
  const S *score, *bias, *scale, *margin;
  S reach;
  std::int64_t count;

  S operator()(std::int64_t i) const { return (score[i] + bias[i]) * scale[i]; }
  S least(std::int64_t i) const { return (score[i] - reach * margin[i] + bias[i]) * scale[i]; }
  S most(std::int64_t i) const { return (score[i] + reach * margin[i] + bias[i]) * scale[i]; }
};

// Rows of tiles, as an encoder with or without bias and scale counts them; without bounds they are what they are.
template <class S>
class ScoreLines {
 public:
  ScoreLines(const Tensor& bias, const Tensor& scale, const S* reach = nullptr, const S* margin = nullptr)
      : bias_(bias.exists() ? bias.as<S>() : nullptr),
        scale_(scale.exists() ? scale.as<S>() : nullptr),
        reach_(reach),
        margin_(margin) {
    std::fill_n(ones_, kMostTileCols, S(1));
  }
  Scored<S> of(const ScoreTile<S>& tile, std::int64_t row) const {
    const Range cols = tile.cols;
    return {tile.scores + (row - tile.rows.begin) * tile.stride,
            bias_ == nullptr ? zeros_ : bias_ + cols.begin,
            scale_ == nullptr ? ones_ : scale_ + cols.begin,
            margin_ == nullptr ? zeros_ : margin_ + cols.begin,
            reach_ == nullptr ? S(0) : reach_[row],
            cols.end - cols.begin};
  }

 private:
  const S *bias_, *scale_, *reach_, *margin_;
  S zeros_[kMostTileCols] = {}, ones_[kMostTileCols];
};

// Writes the offsets of those that may be greater than the limit, or NaN; of all where the limit is NaN. Says how many
// there are; `offsets` has room for all.
template <class S>
std::int64_t filter(const Scored<S>& row, S limit, std::int32_t* offsets);

}  // namespace fastsae::cpu
