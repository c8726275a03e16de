// The instructions of cuda/tensor_cores.h on 32 lanes that one thread plays, after the tables "Matrix Fragments for
// mma.m16n8k8" (tf32) and "mma.m16n8k16" (bf16) of the PTX ISA. Written from those, not from our own loads.
#pragma once

#include <cstdint>

#include "math/low_precision.h"

namespace fastsae::cuda {

inline std::uint32_t bits_of(float value) {
  FloatBits wide;
  wide.value = value;
  return wide.bits;
}

// D [16 x 8] += A [16 x depth] B [depth x 8], where lane 4 g + t holds c0 (g, 2t), c1 (g, 2t + 1), c2 (g + 8, 2t) and
// c3 (g + 8, 2t + 1).
template <int depth, class State>
void add_product(State* lanes, int i, int j, const float (&a)[16][depth], const float (&b)[depth][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    const int rows[] = {g, g, g + 8, g + 8}, cols[] = {2 * t, 2 * t + 1, 2 * t, 2 * t + 1};
    for (int c = 0; c < 4; ++c) {
      for (int k = 0; k < depth; ++k) lanes[lane].sum[i][j][c] += a[rows[c]][k] * b[k][cols[c]];
    }
  }
}

struct EmulatedTf32 {
  static constexpr int depth = 8;

  template <class Staged>
  static std::uint32_t word(const Staged& from, int i, int k) {
    return bits_of(round_tf32(from.at(i, k)));
  }

  template <class State>
  static void multiply(State* lanes, int i, int j) {
    const auto value = [](std::uint32_t bits) {
      FloatBits wide;
      wide.bits = bits & 0xffffe000u;  // the instruction does not see the rest
      return wide.value;
    };
    float a[16][8], b[8][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      a[g][t] = value(lanes[lane].a[i][0]);
      a[g + 8][t] = value(lanes[lane].a[i][1]);
      a[g][t + 4] = value(lanes[lane].a[i][2]);
      a[g + 8][t + 4] = value(lanes[lane].a[i][3]);
      b[t][g] = value(lanes[lane].b[j][0]);
      b[t + 4][g] = value(lanes[lane].b[j][1]);
    }
    add_product<8>(lanes, i, j, a, b);
  }
};

struct EmulatedBf16 {
  static constexpr int depth = 16;

  template <class Staged>
  static std::uint32_t word(const Staged& from, int i, int k) {
    return Bf16::round(from.at(i, k)).bits | std::uint32_t{Bf16::round(from.at(i, k + 8)).bits} << 16;
  }

  template <class State>
  static void multiply(State* lanes, int i, int j) {
    const auto low = [](std::uint32_t word) { return Bf16{static_cast<std::uint16_t>(word)}.value(); };
    const auto high = [](std::uint32_t word) { return Bf16{static_cast<std::uint16_t>(word >> 16)}.value(); };
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int r = 0; r < 4; ++r) {
        const int row = r == 0 || r == 2 ? g : g + 8, col = 2 * t + (r < 2 ? 0 : 8);
        a[row][col] = low(lanes[lane].a[i][r]);
        a[row][col + 1] = high(lanes[lane].a[i][r]);
      }
      for (int r = 0; r < 2; ++r) {
        b[2 * t + 8 * r][g] = low(lanes[lane].b[j][r]);
        b[2 * t + 8 * r + 1][g] = high(lanes[lane].b[j][r]);
      }
    }
    add_product<16>(lanes, i, j, a, b);
  }
};

}  // namespace fastsae::cuda
