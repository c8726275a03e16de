#include "bindings/rows.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include "core/error.h"

namespace py = pybind11;

namespace fastsae {
namespace {

RowSource rows_of(const DeviceArray& x) {
  return {x.tensor.data,  x.tensor.rows,
          x.tensor.cols,  x.tensor.stride * static_cast<std::int64_t>(size_of(x.tensor.dtype)),
          x.tensor.dtype, true};
}

DeviceArray borrow(const Engine& engine, const std::string& name, const py::object& tensor) {
  const Backend& backend = engine.backend();
  return from_dlpack(name, tensor, backend.place(), backend.fetch_rows(),
                     [&](const std::function<void(void*)>& body) {
                       if (backend.stream() == nullptr) return body(nullptr);
                       py::gil_scoped_release release;
                       engine.with_stream([&](void* stream) {
                         py::gil_scoped_acquire gil;
                         body(stream);
                       });
                     });
}

// None where there is too little room, if `sparing`.
std::optional<DeviceArray> empty(const Engine& engine, std::int64_t rows, std::int64_t cols, bool sparing) {
  FS_REQUIRE(rows >= 0 && cols >= 0, "expected sizes >= 0, got ", rows, " x ", cols);
  DeviceArray array;
  array.tensor = {nullptr, rows, cols, cols, engine.dtype()};
  array.place = engine.backend().place();
  array.fetch = engine.backend().fetch_rows();
  const std::size_t bytes = static_cast<std::size_t>(rows) * array.tensor.row_bytes();
  py::gil_scoped_release release;
  if (sparing && !engine.has_room(bytes)) return std::nullopt;
  array.memory = engine.allocate(bytes);
  array.tensor.data = array.memory.get();
  return array;
}

// The rows of an array in host memory where they are, if the device reads them there.
std::optional<DeviceArray> view(const Engine& engine, const py::array& x) {
  const RowSource rows = rows_of("X", engine, x, engine.n_features());
  if (!engine.backend().reads(rows) || rows.stride_bytes % x.itemsize() != 0) return std::nullopt;
  return view_of(x, rows.dtype, engine.backend().fetch_rows());
}

void take(const Engine& engine, const Rows& x, const Order& order, const DeviceArray& to,
          std::int64_t first) {
  const RowSource rows = rows_of("X", engine, x, to.tensor.cols);
  const std::int64_t* indices = order_of(order, rows.rows);
  const std::int64_t count = order ? order->size() : rows.rows;
  FS_REQUIRE(first >= 0 && first + count <= to.tensor.rows, "to: expected room for rows up to ",
             first + count, ", got ", to.tensor.rows);
  const Tensor target = to.tensor.slice_rows(first, count);
  py::gil_scoped_release release;
  if (count > 0) engine.take(rows, indices, target);
}

std::int64_t first_row_outside(const Engine& engine, const DeviceArray& x, double low, double high) {
  const RowSource rows = rows_of("X", engine, x, x.tensor.cols);
  py::gil_scoped_release release;
  return engine.first_row_outside(rows, low, high);
}

}  // namespace

py::dtype numpy_dtype(DType dtype) {
  return dtype == DType::f32 ? py::dtype::of<float>() : py::dtype::of<double>();
}

RowSource rows_of(const char* name, const Engine& engine, const Rows& rows, std::int64_t cols) {
  if (const auto* x = std::get_if<DeviceArray>(&rows)) {
    FS_REQUIRE(x->place == engine.backend().place(), name, ": expected rows on ",
               place_name(engine.backend().place()), ", got them on ", place_name(x->place));
    FS_REQUIRE(!x->vector && x->tensor.cols == cols, name, ": expected ", cols, " columns, got ",
               x->vector ? text("1 dimension") : text(x->tensor.cols));
    return rows_of(*x);
  }
  const auto& x = std::get<py::array>(rows);
  const bool f32 = py::isinstance<py::array_t<float>>(x), f64 = py::isinstance<py::array_t<double>>(x);
  FS_REQUIRE(f32 || f64, name, ": expected an array of float32 or float64");
  FS_REQUIRE(x.ndim() == 2 && x.shape(1) == cols, name, ": expected ", cols, " columns, got ",
             x.ndim() == 2 ? text(x.shape(1)) : text(x.ndim(), " dimensions"));
  FS_REQUIRE(x.size() == 0 || cols == 1 || x.strides(1) == x.itemsize(), name,
             ": expected rows that are contiguous in memory");
  return {x.data(), x.shape(0), cols, x.strides(0), f32 ? DType::f32 : DType::f64};
}

RowTarget output_of(Rows& out, const Engine& engine, const RowSource& in, std::int64_t cols) {
  const Place place = engine.backend().place();
  const std::size_t bytes = static_cast<std::size_t>(in.rows * cols) * size_of(engine.dtype());
  RowTarget target(nullptr);
  if (const auto* array = std::get_if<DeviceArray>(&out)) {
    const Tensor& t = array->tensor;
    FS_REQUIRE(array->place == place && t.dtype == engine.dtype() && !array->vector && t.rows == in.rows &&
                   t.cols == cols && array->dense() && !array->read_only,
               "out: expected a writable dense ", dtype_name(engine.dtype()), " array of ", in.rows, " x ",
               cols, " on ", place_name(place), ", got ", t.rows, " x ", t.cols, " of ", dtype_name(t.dtype),
               " on ", place_name(array->place), array->read_only ? ", read-only" : "");
    target = {t.data, true};
  } else {
    auto& host = std::get<py::array>(out);
    FS_REQUIRE(
        host.dtype().equal(numpy_dtype(engine.dtype())) && host.ndim() == 2 && host.shape(0) == in.rows &&
            host.shape(1) == cols && (host.flags() & py::array::c_style) && host.writeable(),
        "out: expected a writable C-contiguous array of ", in.rows, " x ", cols, " in the model's dtype");
    target = host.mutable_data();
  }
  if (bytes == 0) return target;
  const auto* first = static_cast<const std::byte*>(target.data);
  const std::byte* in_last = in.row(in.rows - 1) + static_cast<std::size_t>(in.cols) * size_of(in.dtype);
  FS_REQUIRE(first + bytes <= in.data || in_last <= first,
             "out: expected memory of its own, got memory that the input uses");
  return target;
}

const std::int64_t* order_of(const Order& order, std::int64_t rows) {
  if (!order) return nullptr;
  for (std::int64_t i = 0; i < order->size(); ++i) {
    const std::int64_t row = order->data()[i];
    FS_REQUIRE(row >= 0 && row < rows, "order: expected row numbers in [0, ", rows, "), got ", row);
  }
  return order->data();
}

void bind_rows(py::class_<Engine>& engine) {
  engine.def("borrow", &borrow, py::arg("name"), py::arg("tensor"))
      .def("empty", &empty, py::arg("rows"), py::arg("cols"), py::arg("sparing"))
      .def("view", &view, py::arg("X"))
      .def("take", &take, py::arg("X"), py::arg("order"), py::arg("to"), py::arg("first"))
      .def("first_row_outside", &first_row_outside, py::arg("X"), py::arg("low"), py::arg("high"))
      .def_property_readonly("place", [](const Engine& engine) {
        const Place place = engine.backend().place();
        return std::pair<int, int>(place.type, place.id);
      });
}

}  // namespace fastsae
