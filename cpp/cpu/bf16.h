// Matrix products of factors rounded to bfloat16, on processors that have instructions for it.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "backend/backend.h"
#include "cpu/blas.h"

namespace fastsae::cpu {

// C (m x n) = A B + beta C, row-major, as in blas.h; beta is 0 or 1. The factors are rounded to nearest while they
// are packed, ties to even, and their products summed in float32. The bits of an element depend on k alone.
using GemmBf16 = void (*)(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                          const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta,
                          float* c, std::int64_t ldc);

struct Bf16Unit {
  const char* name;
  GemmBf16 gemm;
};

// Those that this process may use, the fastest first: "amx", then "avx512_bf16". None below FASTSAE_ISA=avx512.
const std::vector<Bf16Unit>& bf16_units();

// By the fastest one, whose name is null where there is none.
const char* bf16_unit();
void gemm_bf16(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
               const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
               std::int64_t ldc);

// The product of blas.h with floats rounded to `precision`, full or bf16; doubles are not rounded.
template <class S>
void gemm(Precision precision, bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n,
          std::int64_t k, const S* a, std::int64_t lda, const S* b, std::int64_t ldb, S beta, S* c,
          std::int64_t ldc) {
  if constexpr (std::is_same_v<S, float>) {
    if (precision == Precision::bf16)
      return gemm_bf16(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, beta, c, ldc);
  }
  gemm(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

}  // namespace fastsae::cpu
