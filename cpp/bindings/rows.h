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

// Taking tensors in and making room for results, for an engine and for an encoder.
void bind_memory(pybind11::class_<Engine>& engine);
void bind_memory(pybind11::class_<TopKEncoder>& encoder);
// Keeping rows on the device, and looking through them.
void bind_rows(pybind11::class_<Engine>& engine);

}  // namespace fastsae
