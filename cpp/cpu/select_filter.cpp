#include "cpu/select_filter.h"

#include <algorithm>
#include <bit>

#include "cpu/loops.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kLanes = 32;   // scores that are looked at together
constexpr std::int64_t kBlocks = 16;  // of so many scores

// For each of `blocks` blocks, which of its scores pass: a bit for each.
template <class S>
using Passed = void (*)(Scored<S> row, std::int64_t blocks, S limit, std::uint32_t* bits);

template <class S>
void run_baseline(Scored<S> row, std::int64_t blocks, S limit, std::uint32_t* bits) {
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t first = block * kLanes;
    std::int32_t any = 0;
    for (std::int64_t i = first; i < first + kLanes; ++i) any |= row.most(i) <= limit ? 0 : 1;
    bits[block] = 0;
    for (std::int64_t i = 0; any != 0 && i < kLanes; ++i)
      bits[block] |= (row.most(first + i) <= limit ? 0u : 1u) << i;
  }
}

#if defined(__x86_64__)

// Comparisons that also hold where one side is NaN.
template <class S>
void run_avx2(Scored<S> row, std::int64_t blocks, S limit, std::uint32_t* bits);
template <class S>
void run_avx512(Scored<S> row, std::int64_t blocks, S limit, std::uint32_t* bits);

template <>
[[gnu::target("avx2,fma")]] void run_avx2(Scored<float> row, std::int64_t blocks, float limit,
                                          std::uint32_t* bits) {
  const __m256 least = _mm256_set1_ps(limit), reach = _mm256_set1_ps(row.reach);
  for (std::int64_t i = 0; i < blocks * kLanes; i += 8) {
    const __m256 most =
        _mm256_fmadd_ps(reach, _mm256_loadu_ps(row.margin + i), _mm256_loadu_ps(row.score + i));
    const __m256 z = _mm256_add_ps(most, _mm256_loadu_ps(row.bias + i));
    const __m256 greater =
        _mm256_cmp_ps(_mm256_mul_ps(z, _mm256_loadu_ps(row.scale + i)), least, _CMP_NLE_UQ);
    const auto found = static_cast<std::uint32_t>(_mm256_movemask_ps(greater)) << i % kLanes;
    bits[i / kLanes] = i % kLanes == 0 ? found : bits[i / kLanes] | found;
  }
}

template <>
[[gnu::target("avx2,fma")]] void run_avx2(Scored<double> row, std::int64_t blocks, double limit,
                                          std::uint32_t* bits) {
  const __m256d least = _mm256_set1_pd(limit), reach = _mm256_set1_pd(row.reach);
  for (std::int64_t i = 0; i < blocks * kLanes; i += 4) {
    const __m256d most =
        _mm256_fmadd_pd(reach, _mm256_loadu_pd(row.margin + i), _mm256_loadu_pd(row.score + i));
    const __m256d z = _mm256_add_pd(most, _mm256_loadu_pd(row.bias + i));
    const __m256d greater =
        _mm256_cmp_pd(_mm256_mul_pd(z, _mm256_loadu_pd(row.scale + i)), least, _CMP_NLE_UQ);
    const auto found = static_cast<std::uint32_t>(_mm256_movemask_pd(greater)) << i % kLanes;
    bits[i / kLanes] = i % kLanes == 0 ? found : bits[i / kLanes] | found;
  }
}

template <>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]] void run_avx512(Scored<float> row,
                                                                               std::int64_t blocks,
                                                                               float limit,
                                                                               std::uint32_t* bits) {
  const __m512 least = _mm512_set1_ps(limit), reach = _mm512_set1_ps(row.reach);
  for (std::int64_t i = 0; i < blocks * kLanes; i += 16) {
    const __m512 most =
        _mm512_fmadd_ps(reach, _mm512_loadu_ps(row.margin + i), _mm512_loadu_ps(row.score + i));
    const __m512 z = _mm512_add_ps(most, _mm512_loadu_ps(row.bias + i));
    const __mmask16 greater =
        _mm512_cmp_ps_mask(_mm512_mul_ps(z, _mm512_loadu_ps(row.scale + i)), least, _CMP_NLE_UQ);
    const std::uint32_t found = std::uint32_t{greater} << i % kLanes;
    bits[i / kLanes] = i % kLanes == 0 ? found : bits[i / kLanes] | found;
  }
}

template <>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]] void run_avx512(Scored<double> row,
                                                                               std::int64_t blocks,
                                                                               double limit,
                                                                               std::uint32_t* bits) {
  const __m512d least = _mm512_set1_pd(limit), reach = _mm512_set1_pd(row.reach);
  for (std::int64_t i = 0; i < blocks * kLanes; i += 8) {
    const __m512d most =
        _mm512_fmadd_pd(reach, _mm512_loadu_pd(row.margin + i), _mm512_loadu_pd(row.score + i));
    const __m512d z = _mm512_add_pd(most, _mm512_loadu_pd(row.bias + i));
    const __mmask8 greater =
        _mm512_cmp_pd_mask(_mm512_mul_pd(z, _mm512_loadu_pd(row.scale + i)), least, _CMP_NLE_UQ);
    const std::uint32_t found = std::uint32_t{greater} << i % kLanes;
    bits[i / kLanes] = i % kLanes == 0 ? found : bits[i / kLanes] | found;
  }
}

#endif

template <class S>
Passed<S> passed() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return run_avx512<S>;
  if (isa() == Isa::avx2) return run_avx2<S>;
#endif
  return run_baseline<S>;
}

}  // namespace

template <class S>
std::int64_t filter(const Scored<S>& row, S limit, std::int32_t* offsets) {
  static const Passed<S> run = passed<S>();
  std::int64_t found = 0;
  std::uint32_t bits[kBlocks + 1];
  const auto take = [&](std::int64_t first, std::uint64_t some) {
    for (; some != 0; some &= some - 1)
      offsets[found++] = static_cast<std::int32_t>(first + std::countr_zero(some));
  };
  const auto from = [&](std::int64_t i) {
    return Scored<S>{row.score + i, row.bias + i, row.scale + i, row.margin + i, row.reach, row.count - i};
  };
  std::int64_t i = 0;
  while (i + kLanes <= row.count) {
    const std::int64_t blocks = std::min(kBlocks, (row.count - i) / kLanes);
    bits[blocks] = 0;
    run(from(i), blocks, limit, bits);
    for (std::int64_t block = 0; block < blocks; block += 2)
      take(i + block * kLanes, std::uint64_t{bits[block + 1]} << kLanes | bits[block]);
    i += blocks * kLanes;
  }
  if (i < row.count && row.count >= kLanes) {  // the last block again, without what was seen
    const std::int64_t first = row.count - kLanes, seen = i - first;
    run(from(first), 1, limit, bits);
    take(first, bits[0] >> seen << seen);
    return found;
  }
  for (; i < row.count; ++i) {
    offsets[found] = static_cast<std::int32_t>(i);
    found += row.most(i) <= limit ? 0 : 1;
  }
  return found;
}

template std::int64_t filter(const Scored<float>&, float, std::int32_t*);
template std::int64_t filter(const Scored<double>&, double, std::int32_t*);

}  // namespace fastsae::cpu
