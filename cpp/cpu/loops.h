// The compiled loops over the kernel list, one set for each instruction set.
#pragma once

#include <string>

#include "core/tensor.h"
#include "kernels/kernel.h"

namespace fastsae::cpu {

enum class Isa { baseline, avx2, avx512 };

// The best level of this processor, or what FASTSAE_ISA=baseline|avx2|avx512 asks for.
Isa isa();
const char* isa_name(Isa isa);

struct Block {
  std::int64_t row_begin, row_end, col_begin, col_end;
};

// Runs the kernel over a block of `out`. Column sums are written to sums[summand * sum_stride + col] and row
// sums to sums[row * sum_stride + summand] for the block's columns or rows; both are set, not added to.
using Loop = void (*)(const std::byte* kernel, const Tensor& out, Block block, double* sums,
                      std::int64_t sum_stride);
Loop find_loop(const Kernel& kernel);

}  // namespace fastsae::cpu
