// The k largest of each row of an encoder product, found while the product comes out in tiles.
#pragma once

#include <functional>

#include "backend/backend.h"
#include "cpu/pool.h"
#include "cpu/scratch.h"

namespace fastsae::cpu {

// Runs task(0 .. count-1) on many threads, and polls.
using Parallel = std::function<void(std::int64_t count, const Task& task)>;

void encode_select(const Selection& selection, Precision precision, Scratch& scratch,
                   const Parallel& parallel);

}  // namespace fastsae::cpu
