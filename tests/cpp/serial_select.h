// Selection from a tile of scores with one thread that plays the blocks, as select.cu launches them.
#pragma once

#include "select.h"

namespace fastsae::cuda {

template <template <class> class Team = SerialTeam>
void select_grid(const Tensor& scores, std::int64_t first, const Selection& part) {
  with_scalar(scores.dtype, [&](auto s) {
    using S = decltype(s);
    for (std::int64_t row = 0; row < scores.rows; ++row) {
      Team<SelectState<S>> team(SelectShape::members);
      SelectShared<S> shared;
      const ScoreRow<S> of{scores.as<const S>() + row * scores.stride, static_cast<std::int32_t>(first),
                           static_cast<std::int32_t>(scores.cols), part.scale.as<const S>()};
      select_row(team, of,
                 SelectedRow<S>{Out<S>(part.values), part.indices.view<std::int32_t>(), row,
                                static_cast<std::int32_t>(part.values.cols), part.by_column},
                 shared);
    }
  });
}

}  // namespace fastsae::cuda
