// Sparse codes: their options, and codes as Python takes them.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/rows.h"
#include "engine/engine.h"

namespace fastsae {

// What fastsae.SparseCodeConfig.core() made.
SparseCodeSpec sparse_code_from(const pybind11::dict& config);

// Where rows begin, columns and values of the code's elements that are not 0.
pybind11::tuple encode_sparse(const Engine& engine, const Rows& x);

}  // namespace fastsae
