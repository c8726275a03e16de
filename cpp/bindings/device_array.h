// fastsae.DeviceArray.
#pragma once

#include <pybind11/numpy.h>

#include "bindings/dlpack.h"

namespace fastsae {

void bind_device_array(pybind11::module_& m);

// The rows of a matrix in host memory where they are; keeps it alive.
DeviceArray view_of(const pybind11::array& array, DType dtype, FetchRows fetch);

}  // namespace fastsae
