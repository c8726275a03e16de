// Rows that cross between Python and an engine: NumPy arrays, and arrays of the engine's device.
#pragma once

#include <optional>
#include <variant>

#include "bindings/device_array.h"
#include "engine/engine.h"

namespace fastsae {

using Rows = std::variant<DeviceArray, pybind11::array>;
using Order = std::optional<pybind11::array_t<std::int64_t, pybind11::array::c_style>>;

pybind11::dtype numpy_dtype(DType dtype);
RowSource rows_of(const char* name, const Engine& engine, const Rows& rows, std::int64_t cols);
RowTarget output_of(Rows& out, const Engine& engine, const RowSource& in, std::int64_t cols);
// Null without an order; its numbers are those of rows.
const std::int64_t* order_of(const Order& order, std::int64_t rows);

// Taking tensors in, keeping rows on the device, and looking through them.
void bind_rows(pybind11::class_<Engine>& engine);

}  // namespace fastsae
