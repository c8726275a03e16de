// Random numbers without a state: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
// A number depends on the seed, on what it is for, and on the epoch, row and column it is drawn at, and so on neither
// the device, the number of threads nor the size of a batch.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastsae {

// What numbers are for.
enum class Stream : std::uint32_t { corruption = 1, code = 2, direction = 3, neighbour = 4, rounding = 5 };

struct Random4 {
  std::uint32_t word[4];
};

// A word of 32 bits is the lower half of what holds it: vectors of a CPU multiply where they are as wide as the product.
#if defined(__CUDA_ARCH__)
using PhiloxWord = std::uint32_t;
#else
using PhiloxWord = std::uint64_t;
#endif

FS_HD Random4 philox(Random4 counter, std::uint32_t key0, std::uint32_t key1) {
  constexpr std::uint64_t low = 0xFFFFFFFFu;
  PhiloxWord a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
  FS_UNROLL
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = 0xD2511F53u * (a & low), right = 0xCD9E8D57u * (c & low);
    a = static_cast<PhiloxWord>(right >> 32) ^ b ^ key0;
    c = static_cast<PhiloxWord>(left >> 32) ^ d ^ key1;
    b = static_cast<PhiloxWord>(right);
    d = static_cast<PhiloxWord>(left);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{static_cast<std::uint32_t>(a), static_cast<std::uint32_t>(b), static_cast<std::uint32_t>(c),
           static_cast<std::uint32_t>(d)}};
}

// Four numbers for a row of the data set and a column. Seed and epoch are whole and below 2^32, a row below 2^52.
FS_HD Random4 draw(Stream stream, double seed, double epoch, double row, std::int64_t column) {
  // Next to 2^52 a double's mantissa is the integer, in two halves: AVX2 has no conversion to 64 bits.
  const auto number = __builtin_bit_cast(std::uint64_t, row + 0x1p52);
  return philox({{static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(number >> 32) & 0xFFFFFu,
                  static_cast<std::uint32_t>(column), static_cast<std::uint32_t>(epoch)}},
                static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(stream));
}

}  // namespace fastsae
