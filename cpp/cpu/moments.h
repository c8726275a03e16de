// Rows of moments in few bits as an update on the CPU sees them: a block of columns at a time, always inlined.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/sparse.h"
#include "math/moments.h"

namespace fastsae::cpu {

// A word of random bits for each of kDrawnColumns columns.
struct DrawnWords {
  alignas(64) std::uint32_t words[kDrawnColumns];

  // For those of [begin, cols).
  [[gnu::always_inline]] inline void draw(const StepScalars& step, double row, std::int64_t begin,
                                          std::int64_t cols) {
    const std::int64_t draws = std::min(cols - begin, kMomentBlock);
    const double seed = step.seed, number = step.step;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < draws; ++i) {
      const Random4 drawn = moment_chances(seed, number, row, begin + i);
      words[i] = drawn.word[0];
      words[i + kMomentBlock] = drawn.word[1];
      words[i + 2 * kMomentBlock] = drawn.word[2];
      words[i + 3 * kMomentBlock] = drawn.word[3];
    }
  }
};

// How a matrix's moments are kept: load() and keep() are between a block of a row, [begin, begin + count), and numbers.
struct WholeMoments {};

template <class S>
struct Bf16Moments {
  Tensor moments, scales;  // no scales

  template <bool second>
  [[gnu::always_inline]] inline void load(std::int64_t row, std::int64_t begin, std::int64_t count,
                                          S* __restrict to) const {
    const Bf16* __restrict from = moments.as<Bf16>() + row * moments.stride + begin;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<S>(from[i].value());
  }
  template <bool second>
  [[gnu::always_inline]] inline void keep(std::int64_t row, std::int64_t begin, std::int64_t count,
                                          const S* __restrict from,
                                          const std::uint32_t* __restrict words) const {
    Bf16* __restrict to = moments.as<Bf16>() + row * moments.stride + begin;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) to[i] = to_bf16<second>(from[i], words[i]);
  }
};

template <class S>
struct ByteMoments {
  Tensor moments, scales;

  template <bool second>
  [[gnu::always_inline]] inline void load(std::int64_t row, std::int64_t begin, std::int64_t count,
                                          S* __restrict to) const {
    const std::uint8_t* __restrict from = moments.as<std::uint8_t>() + row * moments.stride + begin;
    const S scale = scales.as<S>()[row * scales.stride + begin / kMomentBlock];
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) to[i] = from_byte<second>(from[i], scale);
  }
  template <bool second>
  [[gnu::always_inline]] inline void keep(std::int64_t row, std::int64_t begin, std::int64_t count,
                                          const S* __restrict from,
                                          const std::uint32_t* __restrict words) const {
    std::uint8_t* __restrict to = moments.as<std::uint8_t>() + row * moments.stride + begin;
    const S scale = moment_scale(largest(from, count));
    scales.as<S>()[row * scales.stride + begin / kMomentBlock] = scale;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) to[i] = to_byte<second>(from[i], scale, words[i]);
  }

 private:
  [[gnu::always_inline]] inline static S largest(const S* from, std::int64_t count) {
    constexpr std::int64_t kLanes = 16;
    S lanes[kLanes] = {};
    std::int64_t at = 0;
    const auto take = [&](std::int64_t i, std::int64_t lane) {
      const S size = from[i] < S(0) ? -from[i] : from[i];
      lanes[lane] = size > lanes[lane] ? size : lanes[lane];
    };
    for (; at + kLanes <= count; at += kLanes) {
#pragma GCC ivdep
      for (std::int64_t lane = 0; lane < kLanes; ++lane) take(at + lane, lane);
    }
    for (; at < count; ++at) take(at, at % kLanes);
    return *std::max_element(lanes, lanes + kLanes);
  }
};

// Calls f with how the moments of this type are kept.
template <class S, class F>
void with_moments(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f(static_cast<Bf16Moments<S>*>(nullptr));
  if (dtype == DType::u8) return f(static_cast<ByteMoments<S>*>(nullptr));
  f(static_cast<WholeMoments*>(nullptr));
}

}  // namespace fastsae::cpu
