// Which scores of a row come before a limit: the few operations that selection costs for each of them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/select_tiles.h"

namespace fastsae::cpu {

// Part of a row of scores, which count as (score + bias) scale.
template <class S>
struct Scored {
  const S *score, *bias, *scale;
  std::int64_t count;

  S operator()(std::int64_t i) const { return (score[i] + bias[i]) * scale[i]; }
};

// Rows of tiles, as an encoder with or without bias and scale counts them.
template <class S>
class ScoreLines {
 public:
  ScoreLines(const Tensor& bias, const Tensor& scale)
      : bias_(bias.exists() ? bias.as<S>() : nullptr), scale_(scale.exists() ? scale.as<S>() : nullptr) {
    std::fill_n(ones_, kMostTileCols, S(1));
  }
  Scored<S> of(const ScoreTile<S>& tile, std::int64_t row) const {
    const Range cols = tile.cols;
    return {tile.scores + (row - tile.rows.begin) * tile.stride,
            bias_ == nullptr ? zeros_ : bias_ + cols.begin, scale_ == nullptr ? ones_ : scale_ + cols.begin,
            cols.end - cols.begin};
  }

 private:
  const S *bias_, *scale_;
  S zeros_[kMostTileCols] = {}, ones_[kMostTileCols];
};

// Writes the offsets of those that are greater than the limit, or NaN; of all where the limit is NaN. Says how many there
// are; `offsets` has room for all.
template <class S>
std::int64_t filter(const Scored<S>& row, S limit, std::int32_t* offsets);

}  // namespace fastsae::cpu
