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

// The value of a key: -0 comes back as 0, and every NaN as the same one.
FS_HD float selection_value(std::uint32_t key) {
  union {
    std::uint32_t bits;
    float value;
  } as{key == 0xffffffffu ? 0x7fc00000u : key & 0x80000000u ? key ^ 0x80000000u : ~key};
  return as.value;
}

FS_HD double selection_value(std::uint64_t key) {
  union {
    std::uint64_t bits;
    double value;
  } as{key == 0xffffffffffffffffull  ? 0x7ff8000000000000ull
       : key & 0x8000000000000000ull ? key ^ 0x8000000000000000ull
                                     : ~key};
  return as.value;
}

// Whether an element comes before another one.
template <class Key>
FS_HD bool comes_before(Key key, std::int64_t column, Key other_key, std::int64_t other_column) {
  return key != other_key ? key > other_key : column < other_column;
}

}  // namespace fastsae
