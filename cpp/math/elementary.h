// Elementary functions that vectorise in plain loops and give the same bits on every host instruction set.
// float: mul, add, divide and selects only, no tables; compile with -ffp-contract=off. double: libm.
// Polynomial coefficients are those of Cephes 2.8 expf.c and logf.c (S. Moshier, netlib.org/cephes).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace fastsae {
namespace elementary {

inline constexpr float kLog2E = 1.44269504088896341f;
// ln 2 in two parts; an integer of up to 9 bits times the first part is exact.
inline constexpr float kLn2High = 0.693359375f;
inline constexpr float kLn2Low = -2.12194440e-4f;
inline constexpr float kMinNormal = 1.17549435e-38f;
inline constexpr float kInfinity = __builtin_huge_valf();
inline constexpr uint32_t kSignBit = 0x80000000u;
inline constexpr uint32_t kSqrtHalfBits = 0x3f3504f3u;

FS_HD uint32_t to_bits(float x) { return __builtin_bit_cast(uint32_t, x); }
FS_HD float from_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
FS_HD float power_of_two(int32_t n) { return from_bits(static_cast<uint32_t>(n + 127) << 23); }

// x = n ln 2 + r with |r| <= ln 2 / 2.
struct ExpParts {
  int32_t n;
  float r;
};

FS_HD ExpParts split_exponent(float x) {
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits: no conversion, so NaN is harmless.
  constexpr float kRound = 12582912.0f;
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const int32_t integer = static_cast<int32_t>(to_bits(shifted) - 0x4b400000u);
  return {integer, (x - n * kLn2High) - n * kLn2Low};
}

// exp(r) - 1 for |r| <= ln 2 / 2.
FS_HD float expm1_reduced(float r) {
  // Pairs of terms (Estrin) instead of Horner: shorter dependency chains, 10-20 % faster.
  const float r2 = r * r;
  const float p01 = 1.6666665459e-1f * r + 5.0000001201e-1f;
  const float p23 = 8.3334519073e-3f * r + 4.1665795894e-2f;
  const float p45 = 1.9875691500e-4f * r + 1.3981999507e-3f;
  return ((p45 * r2 + p23) * r2 + p01) * r2 + r;
}

// x = 2^k m with m in [sqrt(1/2), sqrt(2)), for positive normal x.
struct LogParts {
  int32_t k;
  float m;
};

FS_HD LogParts split_mantissa(float x) {
  const uint32_t bits = to_bits(x) - kSqrtHalfBits;
  return {static_cast<int32_t>(bits) >> 23, from_bits((bits & 0x007fffffu) + kSqrtHalfBits)};
}

// k ln 2 + log(1 + f) for 1 + f in [sqrt(1/2), sqrt(2)).
FS_HD float log_from_parts(float k, float f) {
  const float f2 = f * f;
  const float f4 = f2 * f2;
  const float p01 = -2.4999993993e-1f * f + 3.3333331174e-1f;
  const float p23 = -1.6668057665e-1f * f + 2.0000714765e-1f;
  const float p45 = -1.2420140846e-1f * f + 1.4249322787e-1f;
  const float p67 = -1.1514610310e-1f * f + 1.1676998740e-1f;
  const float p = ((7.0376836292e-2f * f4) + (p67 * f2 + p45)) * f4 + (p23 * f2 + p01);
  const float tail = (f * f2 * p + k * kLn2Low) - 0.5f * f2;
  return (f + tail) + k * kLn2High;
}

}  // namespace elementary

// Measured over all floats: <= 1.01 ULP; results below the normal range are gradual.
FS_HD float exponential(float x) {
  namespace e = elementary;
  // Outside the limits the result is inf or 0; the comparisons let NaN through.
  const float below = x > 89.0f ? 89.0f : x;
  const float clamped = below < -105.0f ? -105.0f : below;
  const e::ExpParts parts = e::split_exponent(clamped);
  // Two factors, because 2^n itself may be out of range.
  const int32_t half = parts.n >> 1;
  const float value = e::expm1_reduced(parts.r) + 1.0f;
  return value * e::power_of_two(half) * e::power_of_two(parts.n - half);
}

// Measured over all floats: <= 0.85 ULP; log(0) = -inf, NaN below 0.
FS_HD float natural_log(float x) {
  namespace e = elementary;
  const bool subnormal = x < e::kMinNormal;
  const e::LogParts parts = e::split_mantissa(x * (subnormal ? 8388608.0f : 1.0f));
  const int32_t k = parts.k - (subnormal ? 23 : 0);
  const float finite = e::log_from_parts(static_cast<float>(k), parts.m - 1.0f);
  const float positive = x < e::kInfinity ? finite : x;
  const float otherwise = x == 0.0f ? -e::kInfinity : __builtin_nanf("");
  return x > 0.0f ? positive : otherwise;
}

// log(1 + x). Measured over all floats: <= 1.41 ULP; log1p(-1) = -inf, NaN below -1, keeps -0.
FS_HD float log1p_of(float x) {
  namespace e = elementary;
  const float u = 1.0f + x;
  // What the rounding of u lost, exactly (Knuth's two-sum).
  const float back = u - 1.0f;
  const float lost = (x - back) + (1.0f - (u - back));
  const e::LogParts parts = e::split_mantissa(u);
  // lost * 2^-k, in two factors because k may be 128. With k = 0 the sum is x itself, so no digit is lost
  // near 0.
  const float f = (parts.m - 1.0f) + lost * e::power_of_two(1 - parts.k) * 0.5f;
  const float finite = e::log_from_parts(static_cast<float>(parts.k), f);
  const float inside = x < e::kInfinity ? finite : x;
  const float otherwise = x == -1.0f ? -e::kInfinity : __builtin_nanf("");
  const float result = x > -1.0f ? inside : otherwise;
  return e::from_bits(e::to_bits(result) | (e::to_bits(x) & e::kSignBit));
}

// Measured over all floats: <= 2.47 ULP; exactly +-1 from |x| = 9.02 on, keeps -0.
FS_HD float tanh_of(float x) {
  namespace e = elementary;
  const float size = e::from_bits(e::to_bits(x) & ~e::kSignBit);
  const float clamped = size > 10.0f ? 10.0f : size;
  // tanh(a) = t / (t + 2) with t = exp(2a) - 1, which needs no second formula near 0.
  const e::ExpParts parts = e::split_exponent(2.0f * clamped);
  const float scale = e::power_of_two(parts.n);
  const float t = scale * e::expm1_reduced(parts.r) + (scale - 1.0f);
  return e::from_bits(e::to_bits(t / (t + 2.0f)) | (e::to_bits(x) & e::kSignBit));
}

FS_HD double exponential(double x) { return std::exp(x); }
FS_HD double natural_log(double x) { return std::log(x); }
FS_HD double log1p_of(double x) { return std::log1p(x); }
FS_HD double tanh_of(double x) { return std::tanh(x); }

FS_HD float square_root(float x) { return std::sqrt(x); }
FS_HD double square_root(double x) { return std::sqrt(x); }
FS_HD float absolute(float x) { return std::fabs(x); }
FS_HD double absolute(double x) { return std::fabs(x); }

// NaN if either argument is NaN; of +0 and -0 the second argument.
FS_HD float maximum(float a, float b) { return (a > b) | (a != a) ? a : b; }
FS_HD double maximum(double a, double b) { return (a > b) | (a != a) ? a : b; }
FS_HD float minimum(float a, float b) { return (a < b) | (a != a) ? a : b; }
FS_HD double minimum(double a, double b) { return (a < b) | (a != a) ? a : b; }

}  // namespace fastsae
