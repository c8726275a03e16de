// The order in which a row's largest elements are selected: greater values first, NaN before all of them so that it
// stays visible, and of equal values (-0 and 0 are equal) the one in the lower column.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastsae {

// Greater keys come first.
FS_HD std::uint32_t selection_key(float value) {
  if (value != value) return 0xffffffffu;
  union {
    float value;
    std::uint32_t bits;
  } as{value + 0.0f};  // -0 becomes 0
  return as.bits & 0x80000000u ? ~as.bits : as.bits | 0x80000000u;
}

FS_HD std::uint64_t selection_key(double value) {
  if (value != value) return 0xffffffffffffffffull;
  union {
    double value;
    std::uint64_t bits;
  } as{value + 0.0};
  return as.bits & 0x8000000000000000ull ? ~as.bits : as.bits | 0x8000000000000000ull;
}

// Whether an element comes before another one.
template <class Key>
FS_HD bool comes_before(Key key, std::int64_t column, Key other_key, std::int64_t other_column) {
  return key != other_key ? key > other_key : column < other_column;
}

}  // namespace fastsae
