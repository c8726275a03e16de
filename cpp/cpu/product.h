// Backend::product on the CPU.
#pragma once

#include <functional>

#include "backend/backend.h"
#include "cpu/pool.h"
#include "cpu/scratch.h"

namespace fastsae::cpu {

// Calls task(0 .. count-1) on the threads there are.
using Parallel = std::function<void(std::int64_t count, const Task& task)>;

void product(const Factor& a, const Factor& b, const Tensor& out, bool accumulate, const Kernel* kernel,
             Sums sums, Precision precision, Scratch& scratch, const Parallel& parallel);

}  // namespace fastsae::cpu
