// Moments of an optimiser in few bits. They are rounded up or down by chance, such that their mean is right: a step often
// changes them by less than lies between two neighbours. python/fastsae/reference/moments.py has the formulas.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "core/random.h"
#include "math/low_precision.h"

namespace fastsae {

// Columns of a row that have one scale, and those that one number of a draw is for: 4 columns, a block apart.
constexpr std::int64_t kMomentBlock = 256, kDrawnColumns = 4 * kMomentBlock;

// Which row of the draws it is.
FS_HD double moment_row(std::int64_t latent, bool decoder) {
  return static_cast<double>(2 * latent + (decoder ? 1 : 0));
}
// Word col % kDrawnColumns / kMomentBlock of this belongs to a column: its lower half to the first moment, its upper
// half to the second.
FS_HD Random4 moment_chances(double seed, double step, double row, std::int64_t col) {
  return draw(Stream::rounding, seed, step, row, col / kDrawnColumns * kMomentBlock + col % kMomentBlock);
}
template <bool second>
FS_HD std::uint32_t moment_chance(std::uint32_t word) {
  return second ? word >> 16 : word & 0xffffu;
}

// bfloat16. A second moment that is not 0 stays so: what divides must not vanish before what is divided.
template <bool second, class S>
FS_HD Bf16 to_bf16(S moment, std::uint32_t word) {
  constexpr S least = S(0x1p-126);  // the smallest normal number
  if (second && moment > S(0) && moment < least) moment = least;
  return Bf16::round_by_chance(static_cast<float>(moment), moment_chance<second>(word));
}

FS_HD constexpr double one_tenth_to(int power) {
  double one = 1;
  for (int i = 0; i < power; ++i) one *= 10;
  return 1 / one;
}

// 8 bits for the share of a moment in the largest one of its block (Dettmers et al., "8-bit optimizers via block-wise
// quantization", 2022): each decade has twice as many levels as the one below it. Level `code` is the line through the points
// (2^i, 10^(i - decades)), i = 0 ... decades, at code + 1. A first moment has a sign bit and a level 0, a second moment
// has neither, so that it never becomes 0. The lines of rising decades are a convex function, and the largest of them is it.
template <bool second>
struct MomentTree {
  static constexpr int decades = second ? 8 : 7;
  static constexpr std::int32_t last = (1 << decades) - 1;

  template <class S>
  FS_HD static S level(S code) {
    const S nine = S(9) * code + S(9);
    S most = second ? S(one_tenth_to(8)) * (nine - S(8)) : S(one_tenth_to(6)) * code;
    each([&]<int i>(std::integral_constant<int, i>) {
      constexpr S start = S(8 * (1 << i)), slope = S(one_tenth_to(decades - i)) / S(1 << i);
      const S line = slope * (nine - start);
      most = line > most ? line : most;
    });
    return most;
  }
  // Of a share in [0, 1]: the inverse, a concave function, plus a chance in [0, 1).
  template <class S>
  FS_HD static std::int32_t code(S share, std::uint32_t chance) {
    S least = second ? S(8) + S(1e8) * share : S(9) + S(9e6) * share;
    each([&]<int i>(std::integral_constant<int, i>) {
      constexpr S start = S(8 * (1 << i)), slope = S((1 << i) / one_tenth_to(decades - i));
      const S line = start + slope * share;
      least = line < least ? line : least;
    });
    if (second && least < S(9)) least = S(9);  // below the lowest level
    const auto found = static_cast<std::int32_t>(
        least * S(1.0 / 9) + static_cast<S>(static_cast<std::int32_t>(chance)) * S(0x1p-16));
    return found > last ? last : found - 1;
  }

 private:
  template <class F>
  FS_HD static void each(const F& of) {
    each(of, std::make_integer_sequence<int, decades - 1>{});
  }
  template <class F, int... i>
  FS_HD static void each(const F& of, std::integer_sequence<int, i...>) {
    (of(std::integral_constant<int, i + 1>{}), ...);
  }
};

// What a block's largest moment is kept as; one that has no inverse counts as 0 or as the largest that has.
template <class S>
FS_HD S moment_scale(S largest) {
  constexpr S least = S(sizeof(S) == 4 ? 0x1p-126 : 0x1p-1022), most = S(1) / least;  // normal numbers
  return largest < least ? S(0) : largest < most ? largest : most;
}
template <bool second, class S>
FS_HD std::uint8_t to_byte(S moment, S scale, std::uint32_t word) {
  const S inverse = scale > S(0) ? S(1) / scale : S(0), size = moment < S(0) ? -moment : moment;
  const S share = size * inverse;
  const std::int32_t code =
      MomentTree<second>::code(share < S(1) ? share : S(1), moment_chance<second>(word));
  return static_cast<std::uint8_t>(!second && moment < S(0) ? code | 0x80 : code);
}
template <bool second, class S>
FS_HD S from_byte(std::uint8_t byte, S scale) {
  if (second) return MomentTree<true>::level(static_cast<S>(std::int32_t{byte})) * scale;
  const S size = MomentTree<false>::level(static_cast<S>(std::int32_t{byte} & 0x7f)) * scale;
  return byte > 0x7f ? -size : size;
}

}  // namespace fastsae
