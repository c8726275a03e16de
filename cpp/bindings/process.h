// What holds for the whole process (backend/process.h), and a matrix product of its CPU by itself.
#pragma once

#include <pybind11/pybind11.h>

namespace fastsae {

void bind_process(pybind11::module_& module);

}  // namespace fastsae
