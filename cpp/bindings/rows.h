// Rows that cross between Python and an engine or encoder: NumPy arrays, and arrays of its device.
#pragma once

#include <optional>
#include <variant>

#include "bindings/device_array.h"
#include "engine/engine.h"
#include "engine/topk_encoder.h"

namespace fastsae {

using Rows = std::variant<DeviceArray, pybind11::array>;
using Order = std::optional<pybind11::array_t<std::int64_t, pybind11::array::c_style>>;

pybind11::dtype numpy_dtype(DType dtype);
RowSource rows_of(const char* name, const Backend& backend, const Rows& rows, std::int64_t cols);
RowTarget output_of(const char* name, Rows& out, const Backend& backend, DType dtype, const RowSource& in,
                    std::int64_t cols);
// Null without an order; its numbers are those of rows.
const std::int64_t* order_of(const Order& order, std::int64_t rows);

// What arrays.py asks about arrays.
void bind_arrays(pybind11::module_& m);
// Taking tensors in and making room for results, for an engine and for an encoder.
void bind_memory(pybind11::class_<Engine>& engine);
void bind_memory(pybind11::class_<TopKEncoder>& encoder);
// Keeping rows on the device, and looking through them.
void bind_rows(pybind11::class_<Engine>& engine);

}  // namespace fastsae

// pybind11 asks each alternative in turn, and what is no DeviceArray it asks for an attribute of another build's type,
// which takes longer than a small encode.
template <>
struct pybind11::detail::type_caster<fastsae::Rows> {
  PYBIND11_TYPE_CASTER(fastsae::Rows, make_caster<fastsae::DeviceArray>::name + const_name(" | ") +
                                          make_caster<pybind11::array>::name);

  bool load(handle from, bool convert) {
    if (isinstance<array>(from)) {
      value = reinterpret_borrow<array>(from);
      return true;
    }
    make_caster<fastsae::DeviceArray> device;
    if (!device.load(from, convert)) return false;
    value = cast_op<const fastsae::DeviceArray&>(device);
    return true;
  }
};
