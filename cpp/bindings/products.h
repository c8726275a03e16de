// A matrix product of the CPU by itself.
#pragma once

#include <pybind11/pybind11.h>

namespace fastsae {

void bind_products(pybind11::module_& module);

}  // namespace fastsae
