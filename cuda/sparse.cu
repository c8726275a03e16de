// Sparse codes: what is done with their rows.
#include "decode.h"
#include "kernels/list.h"
#include "parts.cuh"
#include "passes.h"
#include "tensor_cores.h"

namespace fastsae::cuda {

void launch_decode(const Decoding& decoding, cudaStream_t stream) {
  decode_rows(JobLaunch{stream}, decoding);
}

void launch_write_code(const Code& code, const Tensor& rows, cudaStream_t stream) {
  write_code_rows(JobLaunch{stream}, code, rows);
}

void launch_row_norms(const Tensor& of, const Tensor& norms, cudaStream_t stream) {
  norms_of_rows(JobLaunch{stream}, of, norms);
}

void launch_index(const IndexTasks& tasks, cudaStream_t stream) { index_codes(JobLaunch{stream}, tasks); }

void launch_collect(const CollectWork& work, cudaStream_t stream) {
  collect_elements(JobLaunch{stream}, work);
}

void launch_sum_latents(const LatentSums& all, cudaStream_t stream) { sum_latents(JobLaunch{stream}, all); }

void launch_select_dead(const DeadWork& work, Precision precision, cudaStream_t stream) {
  const JobLaunch launch{stream};
  if (precision == Precision::full || work.all.x.dtype != DType::f32) return select_among_dead(launch, work);
  select_among_dead(launch, work, [&](auto, std::int64_t first, std::int64_t rows) {
    if (precision == Precision::tf32)
      launch(ScoreDeadByCores<Tf32Cores>{work, first, rows}, work.score_blocks(rows));
    else
      launch(ScoreDeadByCores<Bf16Cores>{work, first, rows}, work.score_blocks(rows));
  });
}

void launch_select_batch(const BatchWork& work, const ScoreBatchTile& score, cudaStream_t stream) {
  select_from_batch(JobLaunch{stream}, work, score);
}

}  // namespace fastsae::cuda
