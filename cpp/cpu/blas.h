// The matrix product of a BLAS, opened lazily from a private library and held at one thread.
#pragma once

#include <cstdint>

namespace fastsae::cpu {

// C (m x n) = A B + beta C, row-major; the flags say which factors are stored transposed.
void gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
          std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc);
void gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, const double* a,
          std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc);

// y (m) += A x, with A (m x k) row-major.
void gemv(std::int64_t m, std::int64_t k, const float* a, std::int64_t lda, const float* x, float* y);
void gemv(std::int64_t m, std::int64_t k, const double* a, std::int64_t lda, const double* x, double* y);

// Which BLAS, for reports.
const char* blas_name();

}  // namespace fastsae::cpu
