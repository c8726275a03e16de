// What holds for the whole process, whatever engines it has.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace fastsae {

// "cpu", "cuda:0", ...: what make_backend takes here.
std::vector<std::string> devices();
// Why there is no CUDA device; empty where there is one.
std::string cuda_unavailable_reason();
// The library that large products on CUDA devices are computed by; empty where there is none, or no device.
std::string cuda_blas_name();

// Threads of CPU work: see cpu/pool.h.
int num_threads();
void set_num_threads(int count);
void limit_threads_here(int count);

// The instruction set and the BLAS that CPU work uses, for reports.
const char* isa_name();
const char* blas_name();
// Who computes a product of that shape: "blas", or "panels" of our own.
const char* product_provider(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n,
                             std::int64_t k, DType dtype);
// What multiplies bfloat16 on the CPU, if anything does.
std::optional<std::string> bf16_unit();

}  // namespace fastsae
