// Sparse codes latent by latent: the elements of each, its gradient and its update.
#pragma once

#include <span>

#include "backend/sparse.h"
#include "cpu/scratch.h"
#include "cpu/select.h"

namespace fastsae::cpu {

void select_dead(const DeadSelection& selection, Precision precision, RoundingTrials& trials,
                 Scratch& scratch, const Parallel& parallel);
// Whether what is not 0 of a tile has room in the code, and then is there.
bool list_elements(const Tensor& tile, const Code& code, const Parallel& parallel);
void collect(const Collection& collection, Scratch& scratch, const Parallel& parallel);
void sum_by_latent(const Code& code, const Tensor& sums);
void index_latents(std::span<const CodeGradient> codes, std::int64_t slots, const LatentIndex& index,
                   const Tensor& fired, Scratch& scratch, const Parallel& parallel);
void measure_latents(const LatentRows& rows, const Tensor& squares, const Tensor& sums, Scratch& scratch,
                     const Parallel& parallel);
void write_latents(const LatentRows& rows, const Tensor& encoder, const Tensor& decoder, Scratch& scratch,
                   const Parallel& parallel);
void update_latents(const LatentRows& rows, const LatentUpdate& update, Scratch& scratch,
                    const Parallel& parallel);

}  // namespace fastsae::cpu
