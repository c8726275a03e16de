// Sparse codes: what is done with their rows.
#include "decode.h"
#include "kernels/list.h"
#include "parts.cuh"
#include "passes.h"

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

void launch_select_dead(const DeadWork& work, cudaStream_t stream) {
  select_among_dead(JobLaunch{stream}, work);
}

void launch_select_batch(const BatchWork& work, const ScoreBatchTile& score, cudaStream_t stream) {
  select_from_batch(JobLaunch{stream}, work, score);
}

}  // namespace fastsae::cuda
