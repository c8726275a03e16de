#include "cpu/blas.h"

#include "core/error.h"
#include "core/library.h"
#include "fastsae_blas_config.h"  // made by CMake: FASTSAE_BLAS_{NAME,LIBRARY,PREFIX,SET_THREADS}

namespace fastsae::cpu {
namespace {

// The CBLAS constants.
enum : int { kRowMajor = 101, kNoTranspose = 111, kTranspose = 112 };

template <class S>
using CblasGemm = void (*)(int order, int transpose_a, int transpose_b, int m, int n, int k, S alpha,
                           const S* a, int lda, const S* b, int ldb, S beta, S* c, int ldc);

template <class S>
using CblasGemv = void (*)(int order, int transpose, int m, int n, S alpha, const S* a, int lda, const S* x,
                           int x_step, S beta, S* y, int y_step);

struct Blas {
  Library library{FASTSAE_BLAS_LIBRARY[0] == '/' ? FASTSAE_BLAS_LIBRARY : own_folder() + FASTSAE_BLAS_LIBRARY,
                  Library::Symbols::own};
  CblasGemm<float> sgemm = library.function<CblasGemm<float>>(FASTSAE_BLAS_PREFIX "cblas_sgemm");
  CblasGemm<double> dgemm = library.function<CblasGemm<double>>(FASTSAE_BLAS_PREFIX "cblas_dgemm");
  CblasGemv<float> sgemv = library.function<CblasGemv<float>>(FASTSAE_BLAS_PREFIX "cblas_sgemv");
  CblasGemv<double> dgemv = library.function<CblasGemv<double>>(FASTSAE_BLAS_PREFIX "cblas_dgemv");

  Blas() {
    const std::string set_threads = FASTSAE_BLAS_SET_THREADS;
    if (!set_threads.empty()) library.function<void (*)(int)>(set_threads)(1);
  }
};

const Blas& blas() {
  static const Blas* instance = new Blas;  // never closed: threads may still be in it at exit
  return *instance;
}

int as_int(std::int64_t value) {
  FS_REQUIRE(value <= INT32_MAX, "matrix: ", value, " rows or columns are more than the BLAS takes");
  return static_cast<int>(value);
}

template <class S>
void call(CblasGemm<S> f, bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const S* a,
          std::int64_t lda, const S* b, std::int64_t ldb, S beta, S* c, std::int64_t ldc) {
  f(kRowMajor, ta ? kTranspose : kNoTranspose, tb ? kTranspose : kNoTranspose, as_int(m), as_int(n),
    as_int(k), S(1), a, as_int(lda), b, as_int(ldb), beta, c, as_int(ldc));
}

template <class S>
void call(CblasGemv<S> f, std::int64_t m, std::int64_t k, const S* a, std::int64_t lda, const S* x, S* y) {
  f(kRowMajor, kNoTranspose, as_int(m), as_int(k), S(1), a, as_int(lda), x, 1, S(1), y, 1);
}

}  // namespace

void gemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
          const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  call(blas().sgemm, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void gemm(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const double* a, std::int64_t lda,
          const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc) {
  call(blas().dgemm, ta, tb, m, n, k, a, lda, b, ldb, beta, c, ldc);
}

void gemv(std::int64_t m, std::int64_t k, const float* a, std::int64_t lda, const float* x, float* y) {
  call(blas().sgemv, m, k, a, lda, x, y);
}

void gemv(std::int64_t m, std::int64_t k, const double* a, std::int64_t lda, const double* x, double* y) {
  call(blas().dgemv, m, k, a, lda, x, y);
}

const char* blas_name() { return FASTSAE_BLAS_NAME; }

}  // namespace fastsae::cpu
