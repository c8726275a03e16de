// A kernel as a value: the struct's bytes and its place in the closed list of kernels/list.h.
//
// A kernel struct K has:
//   using Scalar            its compute type
//   static constexpr bool epilogue   whether products end with it
//   static constexpr Pass pass   what is done with its summands
//   static constexpr int sums    how many summands it gives
//   Scalar operator()(row, col, z, Scalar* sum) const
// and may have
//   void load()             called on a copy before a block is run: fetches the step's scalars
//   bool idle() const       after load(): the pass does nothing
// z is the element of the output as the product left it (or as it was, in a pass without a product); what
// is returned is stored there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/tensor.h"

namespace fastsae {

enum class Pass : std::uint8_t { each, col_sum, row_sum };

struct Kernel {
  static constexpr std::size_t capacity = 192;
  alignas(16) std::byte bytes[capacity];
  std::uint16_t index;
  Pass pass;
  std::uint8_t sums;
  DType dtype;
};

// Where the sums of a pass go: a double tensor of [sums x cols] (col_sum) or [rows x sums] (row_sum).
struct Sums {
  Tensor into;
  bool accumulate = false;  // add to what is there
};

}  // namespace fastsae
