// A matrix product of the CPU by itself, for tests and for measuring.
#include "bindings/products.h"

#include <pybind11/numpy.h>

#include <chrono>
#include <string>

#include "backend/backend.h"
#include "backend/process.h"
#include "core/error.h"

namespace py = pybind11;

namespace fastsae {
namespace {

Tensor matrix(const char* name, const py::array& array) {
  const bool wide = array.dtype().is(py::dtype::of<double>());
  FS_REQUIRE(wide || array.dtype().is(py::dtype::of<float>()), name, ": expected float32 or float64, got ",
             std::string(py::str(array.dtype())));
  FS_REQUIRE(
      array.ndim() == 2 && array.strides(1) == array.itemsize() && array.strides(0) % array.itemsize() == 0,
      name, ": expected a matrix whose rows lie without gaps");
  return {const_cast<void*>(array.data()), array.shape(0), array.shape(1),
          array.strides(0) / array.itemsize(), wide ? DType::f64 : DType::f32};
}

// Seconds of one of the `repeats` products that are computed.
double product(const py::array& a, const py::array& b, py::array out, bool transpose_a, bool transpose_b,
               bool accumulate, std::int64_t repeats) {
  const Factor left{matrix("a", a), transpose_a}, right{matrix("b", b), transpose_b};
  const Tensor to = matrix("out", out);
  FS_REQUIRE(out.writeable(), "out: expected an array that can be written to");
  FS_REQUIRE(left.cols() == right.rows() && to.rows == left.rows() && to.cols == right.cols(),
             "product: shapes do not fit");
  FS_REQUIRE(left.tensor.dtype == to.dtype && right.tensor.dtype == to.dtype, "product: dtypes differ");
  FS_REQUIRE(repeats >= 1, "repeats: expected an integer >= 1, got ", repeats);
  static Backend* const backend = make_backend("cpu", Precision::full, {}).release();  // its threads stay
  py::gil_scoped_release release;
  const auto start = std::chrono::steady_clock::now();
  for (std::int64_t i = 0; i < repeats; ++i) backend->product(left, right, to, accumulate, nullptr, {});
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
         static_cast<double>(repeats);
}

}  // namespace

void bind_products(py::module_& module) {
  module.def("product", &product, py::arg("a"), py::arg("b"), py::arg("out"), py::arg("transpose_a") = false,
             py::arg("transpose_b") = false, py::arg("accumulate") = false, py::arg("repeats") = 1,
             "out = a b, or out += a b, on the CPU; returns the seconds that one took.");
  module.def(
      "product_provider",
      [](bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
         const py::object& type) {
        const py::dtype dtype = py::dtype::from_args(type);
        FS_REQUIRE(dtype.is(py::dtype::of<float>()) || dtype.is(py::dtype::of<double>()),
                   "dtype: expected float32 or float64, got ", std::string(py::str(dtype)));
        return product_provider(transpose_a, transpose_b, m, n, k,
                                dtype.is(py::dtype::of<float>()) ? DType::f32 : DType::f64);
      },
      py::arg("transpose_a"), py::arg("transpose_b"), py::arg("m"), py::arg("n"), py::arg("k"),
      py::arg("dtype"),
      "Who computes an (m x k) by (k x n) product on the CPU: 'blas', or 'panels' of our own.");
}

}  // namespace fastsae
