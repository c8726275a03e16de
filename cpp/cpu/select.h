// The largest elements of an encoder product, found while it comes out in tiles: of each row, or of the whole matrix.
//
// A tile's scores are filtered row by row while they are in cache: few come before the last of the best so far, and only
// those are looked at one by one. No two elements are equal in the order of kernels/selection.h, so what is selected
// is the same however rows and columns are cut and shared.
#pragma once

#include "backend/backend.h"
#include "cpu/scratch.h"
#include "cpu/select_rounded.h"
#include "cpu/select_tiles.h"

namespace fastsae::cpu {

void encode_select(const Selection& selection, Precision precision, RoundingTrials& trials, Scratch& scratch,
                   const Parallel& parallel);

void encode_select_batch(const BatchSelection& selection, Precision precision, RoundingTrials& trials,
                         Scratch& scratch, const Parallel& parallel);

}  // namespace fastsae::cpu
