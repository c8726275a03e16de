// The passes of a batch selection, one after the other.
#pragma once

#include "select_batch_kept.h"
#include "select_batch_rows.h"

namespace fastsae::cuda {

// launch(job, blocks) runs a job; score(part, scores) makes the scores of a tile.
template <class Launch, class Score>
void select_from_batch(const Launch& launch, const BatchWork& work, const Score& score) {
  const BatchSelection& all = work.all;
  with_scalar(all.x.dtype, [&](auto s) {
    using S = decltype(s);
    launch(StartBatch{work, BatchWork::least<S>()}, BatchWork::kBins / StartBatch::members);
    for (std::int64_t row = 0; row < work.rows() && all.count > 0; row += work.tile.rows) {
      const std::int64_t rows = std::min(work.tile.rows, work.rows() - row);
      for (std::int64_t first = 0; first < work.latents(); first += work.tile.cols) {
        const std::int64_t cols = std::min(work.tile.cols, work.latents() - first);
        Selection part{};
        part.x = all.x.slice_rows(row, rows);
        part.weight = all.weight.slice_rows(first, cols);
        part.bias = columns_of(all.bias, first, cols);
        score(part, Tensor{work.scores, rows, cols, work.tile.cols, all.x.dtype});
        const BatchTile<S> tile{work, row, rows, first, cols};
        launch(CountDigits<S>{tile}, rows);
        launch(RaiseBar<S>{work}, 1);
        launch(CountKept<S>{tile}, rows);
        launch(PlaceKept<S>{tile}, 1);
        launch(PutKept<S>{tile}, rows);
      }
    }
    launch(FinishBatch<S>{work}, 1);
    launch(CountRows<S>{work}, blocks_for(work.rows(), CountRows<S>::members));
    launch(StartRows{work}, 1);
    launch(PutRows<S>{work}, blocks_for(work.rows(), PutRows<S>::rows));
  });
}

}  // namespace fastsae::cuda
