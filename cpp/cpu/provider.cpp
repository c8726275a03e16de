#include "cpu/provider.h"

#include <cstdlib>
#include <string>

#include "core/error.h"
#include "cpu/blas.h"

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

}  // namespace

template <class S>
Provider provider_for(bool, bool, std::int64_t m, std::int64_t, std::int64_t) {
  if (wanted() != Wanted::either) return wanted() == Wanted::blas ? Provider::blas : Provider::panels;
  return has_panels() && m >= 8 ? Provider::panels : Provider::blas;
}

template <class S>
void multiply(Provider provider, const Product<S>& p) {
  if (provider == Provider::panels) return panel_gemm(p);
  gemm(p.transpose_a, p.transpose_b, p.m, p.n, p.k, p.a, p.lda, p.b, p.ldb, p.accumulate ? S(1) : S(0), p.c,
       p.ldc);
}

template Provider provider_for<float>(bool, bool, std::int64_t, std::int64_t, std::int64_t);
template Provider provider_for<double>(bool, bool, std::int64_t, std::int64_t, std::int64_t);
template void multiply(Provider, const Product<float>&);
template void multiply(Provider, const Product<double>&);

}  // namespace fastsae::cpu
