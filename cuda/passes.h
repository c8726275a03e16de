// The compiled device passes, one for each kernel of the list.
#pragma once

#include <cuda_runtime.h>

#include <span>

#include "backend/backend.h"
#include "choice.h"
#include "collect.h"
#include "dead.h"
#include "kernels/kernel.h"
#include "latent_index.h"
#include "latents.h"
#include "select_batch.h"

namespace fastsae::cuda {

// The kernel on each element of out. `partial` has room for partial_doubles(); sums are complete when it returns.
void launch_map(const Kernel& kernel, Tensor out, Sums sums, double* partial, cudaStream_t stream);
// The same for kernels of one struct over several tensors, without sums.
void launch_map_each(std::span<const Mapped> items, cudaStream_t stream);
// out = A B (+ out)
struct ProductCall {
  Factor a, b;
  Tensor out;
  bool accumulate;
};
// The product by our own means, then the kernel (or nothing).
void launch_product(const ProductCall& call, Means means, Precision precision, const Kernel* kernel,
                    Sums sums, double* partial, cudaStream_t stream);
// That on tensor cores; `partial` gets sums of each row of tiles.
void launch_tensor_product(const ProductCall& call, Means means, Precision precision, const Kernel* kernel,
                           double* partial, cudaStream_t stream);
// Whether the list of products has this kernel; others are a product and then a pass.
bool has_product(const Kernel* kernel);
// Doubles of scratch that the sums of a pass or a product over `out` need.
std::size_t partial_doubles(const Kernel* kernel, const Tensor& out);

// Brings the k largest of each row up to date with a tile of scores, whose first column is `first`.
void launch_select(const Tensor& scores, std::int64_t first, const Selection& part, cudaStream_t stream);

// Sparse codes: decode.h, collect.h, latent_index.h, dead.h, select_batch.h and latents.h.
void launch_decode(const Decoding& decoding, cudaStream_t stream);
void launch_write_code(const Code& code, const Tensor& rows, cudaStream_t stream);
void launch_row_norms(const Tensor& of, const Tensor& norms, cudaStream_t stream);
void launch_index(const IndexTasks& tasks, cudaStream_t stream);
void launch_collect(const CollectWork& work, cudaStream_t stream);
void launch_sum_latents(const LatentSums& all, cudaStream_t stream);
void launch_select_dead(const DeadWork& work, Precision precision, cudaStream_t stream);
// score(part, scores) launches the product of a tile.
using ScoreBatchTile = std::function<void(const Selection& part, const Tensor& scores)>;
void launch_select_batch(const BatchWork& work, const ScoreBatchTile& score, cudaStream_t stream);
void launch_measure_latents(const LatentRows& rows, const Tensor& squares, const Tensor& sums,
                            const LatentMemory& memory, cudaStream_t stream);
void launch_write_latents(const LatentRows& rows, const Tensor& encoder, const Tensor& decoder,
                          const LatentMemory& memory, cudaStream_t stream);
void launch_update_latents(const LatentRows& rows, const LatentUpdate& update, const LatentMemory& memory,
                           cudaStream_t stream);

// Each window of the images becomes a row of the columns; each pixel the sum of its places there.
void launch_unfold(const Windows& windows, const Tensor& images, const Tensor& columns, cudaStream_t stream);
void launch_fold(const Windows& windows, const Tensor& columns, const Tensor& images, cudaStream_t stream);

void launch_add_totals(std::span<const Total> totals, cudaStream_t stream);
void launch_fill(const Tensor& to, double value, cudaStream_t stream);
// Steps of a model that fits into shared memory, of which a block may have `most_shared` bytes; see small_layout.h.
void launch_small(const SmallModel& model, const SmallBatches& batches, int most_shared, cudaStream_t stream);
// Brings the shadow of a tensor up to date.
void launch_shadow(const Tensor& of, cudaStream_t stream);
// Row i of out, and of its shadow, is row order[i] of the source; both are in the device's memory.
void launch_gather(const RowSource& source, const std::int64_t* order, const Tensor& out,
                   cudaStream_t stream);
// found[i], for each of search_blocks(), is the first row of a block that holds NaN or a number outside [low, high],
// or the number of all rows.
void launch_search(const RowSource& source, double low, double high, std::int64_t* found,
                   cudaStream_t stream);
std::int64_t search_blocks(const RowSource& source);

}  // namespace fastsae::cuda
