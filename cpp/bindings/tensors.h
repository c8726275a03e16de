// The tensors of an engine by name, as arrays. Nobody waits for the engine while holding the GIL.
#pragma once

#include <string>
#include <vector>

#include "bindings/rows.h"
#include "core/error.h"
#include "engine/engine.h"

namespace fastsae {

template <class Owner>
Tensor tensor_of(const Owner& owner, const std::string& name) {
  const pybind11::gil_scoped_release release;
  return owner.tensor(name);
}

template <class Owner>
pybind11::array read_tensor(const Owner& owner, const std::string& name) {
  const Tensor tensor = tensor_of(owner, name);
  pybind11::array out(numpy_dtype(tensor.dtype), std::vector<pybind11::ssize_t>{tensor.rows, tensor.cols});
  void* to = out.mutable_data();
  {
    pybind11::gil_scoped_release release;
    owner.read(name, to);
  }
  return out;
}

inline void write_tensor(Engine& engine, const std::string& name, const pybind11::array& value) {
  const Tensor tensor = tensor_of(engine, name);
  FS_REQUIRE(value.ndim() == 2 && value.shape(0) == tensor.rows && value.shape(1) == tensor.cols, name,
             ": expected shape ", tensor.rows, " x ", tensor.cols);
  FS_REQUIRE(value.dtype().equal(numpy_dtype(tensor.dtype)) && (value.flags() & pybind11::array::c_style),
             name, ": expected a C-contiguous array of the tensor's dtype");
  const void* from = value.data();
  pybind11::gil_scoped_release release;
  engine.write(name, from);
}

}  // namespace fastsae
