// Sums over rows of numbers, always inlined into loops of one instruction set. Each has one order of its terms.
#pragma once

#include <cstdint>

namespace fastsae::cpu {

constexpr std::int64_t kVectorLanes = 16;  // partial sums of a dot product

// y += sum of a[i] x[i].
template <class S, int count>
[[gnu::always_inline]] inline void add_scaled(S* __restrict y, const S* const* x, const S* a,
                                              std::int64_t size) {
  S share[count];
  for (int i = 0; i < count; ++i) share[i] = a[i];
#pragma GCC ivdep
  for (std::int64_t at = 0; at < size; ++at) {
    S sum = y[at];
    for (int i = 0; i < count; ++i) sum += share[i] * x[i][at];
    y[at] = sum;
  }
}

template <class S>
[[gnu::always_inline]] inline S sum_of(const S* lanes) {
  S sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = (lanes[i] + lanes[i + 4]) + (lanes[i + 8] + lanes[i + 12]);
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

template <class S>
[[gnu::always_inline]] inline S dot(const S* x, const S* y, std::int64_t size) {
  S lanes[kVectorLanes] = {};
  std::int64_t at = 0;
  for (; at + kVectorLanes <= size; at += kVectorLanes) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < kVectorLanes; ++i) lanes[i] += x[at + i] * y[at + i];
  }
  for (std::int64_t i = 0; at < size; ++at, ++i) lanes[i] += x[at] * y[at];
  return sum_of(lanes);
}

// The dot products of one row with two others.
template <class S>
[[gnu::always_inline]] inline void dot_two(const S* x, const S* y0, const S* y1, std::int64_t size, S* out) {
  S first[kVectorLanes] = {}, second[kVectorLanes] = {};
  std::int64_t at = 0;
  for (; at + kVectorLanes <= size; at += kVectorLanes) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < kVectorLanes; ++i) {
      first[i] += x[at + i] * y0[at + i];
      second[i] += x[at + i] * y1[at + i];
    }
  }
  for (std::int64_t i = 0; at < size; ++at, ++i) {
    first[i] += x[at] * y0[at];
    second[i] += x[at] * y1[at];
  }
  out[0] = sum_of(first);
  out[1] = sum_of(second);
}

// And with four: as many sums as a processor adds up at once.
template <class S>
[[gnu::always_inline]] inline void dot_four(const S* x, const S* const (&y)[4], std::int64_t size, S* out) {
  S first[kVectorLanes] = {}, second[kVectorLanes] = {}, third[kVectorLanes] = {}, fourth[kVectorLanes] = {};
  std::int64_t at = 0;
  for (; at + kVectorLanes <= size; at += kVectorLanes) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < kVectorLanes; ++i) {
      first[i] += x[at + i] * y[0][at + i];
      second[i] += x[at + i] * y[1][at + i];
      third[i] += x[at + i] * y[2][at + i];
      fourth[i] += x[at + i] * y[3][at + i];
    }
  }
  for (std::int64_t i = 0; at < size; ++at, ++i) {
    first[i] += x[at] * y[0][at];
    second[i] += x[at] * y[1][at];
    third[i] += x[at] * y[2][at];
    fourth[i] += x[at] * y[3][at];
  }
  out[0] = sum_of(first);
  out[1] = sum_of(second);
  out[2] = sum_of(third);
  out[3] = sum_of(fourth);
}

}  // namespace fastsae::cpu
