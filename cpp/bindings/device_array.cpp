// fastsae.DeviceArray.
#include "bindings/device_array.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "core/error.h"

namespace py = pybind11;

namespace fastsae {
namespace {

py::tuple shape_of(const DeviceArray& array) {
  const Tensor& t = array.tensor;
  if (array.vector) return py::make_tuple(t.rows);
  return py::make_tuple(t.rows, t.cols);
}

py::tuple place_of(const DeviceArray& array) { return py::make_tuple(array.place.type, array.place.id); }

py::array to_numpy(const DeviceArray& array) {
  const Tensor& tensor = array.tensor;
  FS_REQUIRE(tensor.dtype != DType::bf16, "NumPy has no bfloat16");
  std::vector<py::ssize_t> shape{tensor.rows};
  if (!array.vector) shape.push_back(tensor.cols);
  py::array copy(py::dtype(dtype_name(tensor.dtype)), shape);
  void* to = copy.mutable_data();
  if (tensor.size() > 0) {
    py::gil_scoped_release release;
    array.fetch(array.place, tensor, to);
  }
  return copy;
}

py::capsule dlpack(const DeviceArray& array, const py::object& stream,
                   const std::optional<std::pair<int, int>>& max_version,
                   const std::optional<std::pair<int, int>>& dl_device, const std::optional<bool>& copy) {
  // All work on the array was done before anyone saw it, so that any stream may use it at once.
  FS_REQUIRE(stream.is_none() || !(array.place == Place{}), "stream: expected None for CPU memory, got ",
             py::repr(stream).cast<std::string>());
  if (dl_device && !(Place{dl_device->first, dl_device->second} == array.place))
    throw py::buffer_error(text("the array is on ", place_name(array.place), " and goes nowhere else"));
  if (copy.value_or(false)) throw py::buffer_error("the array is handed over without a copy only");
  return to_dlpack(array, max_version);
}

}  // namespace

void bind_device_array(py::module_& m) {
  py::class_<DeviceArray>(m, "DeviceArray", R"(Rows in the memory of an engine's device.

What `fastsae.Engine` and `fastsae.TopKEncoder` give for a tensor of their device, and what `fastsae.Engine.hold`
keeps there. ``torch.from_dlpack``, ``cupy.from_dlpack`` and ``jax.dlpack.from_dlpack`` take it without a copy; `numpy`
copies it to the host. It does not turn into a NumPy array by itself.)")
      .def_property_readonly("shape", &shape_of, "Sizes, as a tuple of int.")
      .def_property_readonly(
          "dtype", [](const DeviceArray& array) { return dtype_name(array.tensor.dtype); },
          "\"float32\", \"float64\", \"float16\", \"bfloat16\" or \"int32\".")
      .def_property_readonly(
          "device", [](const DeviceArray& array) { return place_name(array.place); },
          "\"cpu\", or \"cuda:0\", ...")
      .def("__len__", [](const DeviceArray& array) { return array.tensor.rows; })
      .def("__repr__",
           [](const DeviceArray& array) {
             return text("DeviceArray(shape=", py::repr(shape_of(array)).cast<std::string>(), ", dtype='",
                         dtype_name(array.tensor.dtype), "', device='", place_name(array.place), "')");
           })
      .def("numpy", &to_numpy, R"(A copy as a NumPy array.

Returns
-------
ndarray
    Of the same shape and dtype.

Raises
------
ValueError
    For bfloat16, which NumPy lacks.)")
      .def("__dlpack_device__", &place_of)
      .def("__dlpack__", &dlpack, py::kw_only(), py::arg("stream") = py::none(),
           py::arg("max_version") = py::none(), py::arg("dl_device") = py::none(),
           py::arg("copy") = py::none(),
           "A DLPack capsule; all work on the array is done, whatever stream the consumer names.");
}

DeviceArray view_of(const py::array& array, DType dtype, FetchRows fetch) {
  DeviceArray view;
  view.tensor = {const_cast<void*>(array.data()), array.shape(0), array.shape(1),
                 array.shape(0) > 1 ? array.strides(0) / array.itemsize() : array.shape(1), dtype};
  view.fetch = fetch;
  view.read_only = !array.writeable();
  view.memory = Memory(array.inc_ref().ptr(), [](void* owner) {
    py::gil_scoped_acquire gil;
    py::handle(static_cast<PyObject*>(owner)).dec_ref();
  });
  return view;
}

}  // namespace fastsae
