// The short formats that factors of products and moments are rounded to.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastsae {

union FloatBits {
  float value;
  std::uint32_t bits;
};

// The upper half of a float.
struct Bf16 {
  std::uint16_t bits;

  FS_HD float value() const {
    FloatBits wide;
    wide.bits = static_cast<std::uint32_t>(bits) << 16;
    return wide.value;
  }
  // Up with `chance` of 2^16 against what is cut off; at most the largest finite number.
  FS_HD static Bf16 round_by_chance(float value, std::uint32_t chance) {
    FloatBits wide;
    wide.value = value;
    const std::uint32_t size = wide.bits & 0x7fffffffu, sign = wide.bits & 0x80000000u;
    return {static_cast<std::uint16_t>((sign | ((size < 0x7f7f0000u ? size : 0x7f7f0000u) + chance)) >> 16)};
  }
  // To nearest, ties to even; a NaN stays one.
  FS_HD static Bf16 round(float value) {
    FloatBits wide;
    wide.value = value;
    if (value != value) return {static_cast<std::uint16_t>((wide.bits >> 16) | 0x40)};
    return {static_cast<std::uint16_t>((wide.bits + 0x7fff + ((wide.bits >> 16) & 1)) >> 16)};
  }
};

// IEEE 754's half: 5 bits of exponent, 10 of mantissa.
struct F16 {
  std::uint16_t bits;

  FS_HD float value() const {
    const std::uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu;
    FloatBits wide;
    if (exponent == 0)
      wide.value = static_cast<float>(mantissa) * 0x1p-24f;
    else
      wide.bits = (exponent == 0x1f ? 0xffu : exponent + 112) << 23 | mantissa << 13;
    wide.bits |= static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    return wide.value;
  }
};

// A float with 10 bits of mantissa, as tensor cores take it: to nearest, ties away from zero.
FS_HD float round_tf32(float value) {
  FloatBits wide;
  wide.value = value;
  if (value - value != 0) return value;  // infinite or NaN
  wide.bits = (wide.bits + 0x1000) & 0xffffe000u;
  return wide.value;
}

}  // namespace fastsae
