#include "cpu/provider.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <type_traits>

#include "core/error.h"
#include "cpu/bf16.h"
#include "cpu/blas.h"
#include "cpu/loops.h"
#include "cpu/provider_table.h"

namespace fastsae::cpu {
namespace {

enum class Wanted { either, blas, panels };

Wanted wanted_from_environment() {
  const char* value = std::getenv("FASTSAE_PRODUCTS");
  const std::string wanted = value == nullptr ? "" : value;
  if (wanted.empty()) return Wanted::either;
  if (wanted == "blas") return Wanted::blas;
  if (wanted != "panels")
    throw ValueError(text("FASTSAE_PRODUCTS: expected blas or panels, got '", wanted, "'"));
  if (!has_panels())
    throw DeviceError("FASTSAE_PRODUCTS=panels: this processor has neither AVX2 nor AVX-512");
  return Wanted::panels;
}

Wanted wanted() {
  static const Wanted kept = wanted_from_environment();
  return kept;
}

// The place of the first size that is not smaller, or of the last.
template <std::size_t kCount>
std::size_t place_of(std::int64_t size, const std::int64_t (&sizes)[kCount]) {
  return static_cast<std::size_t>(std::lower_bound(sizes, sizes + kCount - 1, size) - sizes);
}

}  // namespace

Provider provider_for(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                      DType dtype) {
  if (wanted() != Wanted::either) return wanted() == Wanted::blas ? Provider::blas : Provider::panels;
  if (!has_panels()) return Provider::blas;
  const std::size_t level = (isa() == Isa::avx512 ? 2 : 0) + (dtype == DType::f64 ? 1 : 0);
  const std::size_t kind = transpose_b ? 1 : transpose_a ? 2 : 0;
  const char first = kFirstRows[level][kind][place_of(n, kTableCols)][place_of(k, kTableInner)];
  return place_of(m, kTableRows) >= static_cast<std::size_t>(first - 'a') ? Provider::panels : Provider::blas;
}

template <class S>
void multiply(Provider provider, const Product<S>& p) {
  if (provider == Provider::panels) return panel_gemm(p);
  if constexpr (std::is_same_v<S, float>) {
    if (provider == Provider::bf16)
      return gemm_bf16(p.transpose_a, p.transpose_b, p.m, p.n, p.k, p.a, p.lda, p.b, p.ldb,
                       p.accumulate ? 1.0f : 0.0f, p.c, p.ldc);
  }
  gemm(p.transpose_a, p.transpose_b, p.m, p.n, p.k, p.a, p.lda, p.b, p.ldb, p.accumulate ? S(1) : S(0), p.c,
       p.ldc);
}

template void multiply(Provider, const Product<float>&);
template void multiply(Provider, const Product<double>&);

}  // namespace fastsae::cpu
