// Winner-take-all activations (Makhzani and Frey 2015): the largest of a map, and the rows of a batch whose largest are
// the largest. On relu layers alone: a unit that is removed is 0, as its slope then is.
#pragma once

#include "kernels/kernel.h"

namespace fastsae {

// The largest activation of each map, and its position: the first of equal ones.
template <class S>
struct MapWinner {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* activation;  // [rows * positions x channels]
  S* place;             // [rows x channels]
  std::int64_t positions, channels;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const S* map = activation + row * positions * channels + col;
    S winner = map[0];
    std::int64_t at = 0;
    for (std::int64_t position = 1; position < positions; ++position) {
      const S a = map[position * channels];
      if (!(a > winner)) continue;
      winner = a;
      at = position;
    }
    place[row * channels + col] = static_cast<S>(at);
    return winner;
  }
};

// The places of winners, or -1 in the rows that are not among the best of their column. Of equal ones the lower row is
// the better; a row of no weight is none of the batch.
template <class S>
struct LifetimeWinner {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* winner;  // [channels x rows]
  const S* weight;  // [rows]
  std::int64_t rows;
  double lifetime;  // share of the rows that win
  bool spatial;     // whether places count
  std::int64_t winners = 0;
  FS_HD void load() {
    std::int64_t count = 0;
    for (std::int64_t i = 0; i < rows; ++i) count += weight[i] > S(0) ? 1 : 0;
    const double share = lifetime * static_cast<double>(count) - 1e-6;  // 0.07 of 100 rows are 7
    winners = static_cast<std::int64_t>(share);
    if (winners < 1 || static_cast<double>(winners) < share) ++winners;
  }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S place, S*) const {
    const S* of_rows = winner + col * rows;
    const S own = of_rows[row];
    std::int32_t better = 0;
    for (std::int64_t i = 0; i < row; ++i) better += (of_rows[i] >= own) & (weight[i] > S(0)) ? 1 : 0;
    for (std::int64_t i = row + 1; i < rows; ++i) better += (of_rows[i] > own) & (weight[i] > S(0)) ? 1 : 0;
    const bool wins = weight[row] > S(0) && better < winners;
    return wins ? (spatial ? place : S(0)) : S(-1);
  }
};

// Removes all others. NaN stays, so that it is seen.
template <class S>
struct KeepWinners {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* place;  // [rows x channels]
  std::int64_t positions, channels;
  bool spatial;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S a, S*) const {
    const std::int64_t image = row / positions;
    const S at = place[image * channels + col];
    const bool kept = spatial ? at == static_cast<S>(row - image * positions) : at >= S(0);
    return kept || a != a ? a : S(0);
  }
};

}  // namespace fastsae
