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

// The type of the elements in the machine's byte order, if results and rows may have it.
std::optional<DType> element_of(const py::array& x) {
  const py::dtype type = x.dtype();
  if (type.byteorder() != '=') return std::nullopt;
  const int number = type.normalized_num();
  if (number == py::dtype::num_of<float>()) return DType::f32;
  if (number == py::dtype::num_of<double>()) return DType::f64;
  if (number == py::dtype::num_of<std::int32_t>()) return DType::i32;
  return std::nullopt;
}

bool is_rows(const py::array& x, std::int64_t cols) {
  const std::optional<DType> type = element_of(x);
  return type && *type != DType::i32 && x.ndim() == 2 && x.shape(1) == cols;
}

bool contiguous_rows(const py::array& x) {
  return x.size() == 0 || x.shape(1) == 1 || x.strides(1) == x.itemsize();
}

bool is_target(const py::array& out, std::int64_t rows, std::int64_t cols, DType dtype) {
  return element_of(out) == dtype && out.ndim() == 2 && out.shape(0) == rows && out.shape(1) == cols &&
         (out.flags() & py::array::c_style) != 0 && out.writeable();
}

// Whether dense memory of a result lies apart from rows.
bool apart(const void* out, std::size_t bytes, const RowSource& in) {
  if (bytes == 0) return true;
  const auto* first = static_cast<const std::byte*>(out);
  const std::byte* in_last = in.row(in.rows - 1) + static_cast<std::size_t>(in.cols) * size_of(in.dtype);
  return first + bytes <= in.data || in_last <= first;
}

RowSource rows_of(const py::array& x) {
  return {x.data(), x.shape(0), x.shape(1), x.strides(0), *element_of(x)};
}

bool is_readable(py::handle x, std::int64_t cols) {
  if (!py::isinstance<py::array>(x)) return false;
  const auto rows = py::reinterpret_borrow<py::array>(x);
  return is_rows(rows, cols) && contiguous_rows(rows) && rows.strides(0) >= 0 &&
         (rows.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
}

bool is_writable(py::handle out, const py::array& x, std::int64_t cols, DType dtype) {
  if (!py::isinstance<py::array>(out) || x.ndim() != 2 || !element_of(x)) return false;
  const auto target = py::reinterpret_borrow<py::array>(out);
  return is_target(target, x.shape(0), cols, dtype) &&
         apart(target.data(), static_cast<std::size_t>(target.nbytes()), rows_of(x));
}

// Integers only where asked for: they are no rows.
template <class Owner>
DeviceArray borrow(const Owner& owner, const std::string& name, const py::object& tensor, bool integers) {
  const Backend& backend = owner.backend();
  DeviceArray array = from_dlpack(name, tensor, backend.place(), backend.fetch_rows(),
                                  [&](const std::function<void(void*)>& body) {
                                    if (backend.stream() == nullptr) return body(nullptr);
                                    py::gil_scoped_release release;
                                    owner.with_stream([&](void* stream) {
                                      py::gil_scoped_acquire gil;
                                      body(stream);
                                    });
                                  });
  FS_REQUIRE(integers || array.tensor.dtype != DType::i32, name,
             ": expected float32, float64, float16 or bfloat16, got int32");
  return array;
}

DType result_dtype(const std::string& name) {
  for (const DType dtype : {DType::f32, DType::f64, DType::i32}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw ValueError(text("dtype: expected 'float32', 'float64' or 'int32', got '", name, "'"));
}

template <class Owner>
DeviceArray empty(const Owner& owner, std::int64_t rows, std::int64_t cols, const std::string& dtype) {
  FS_REQUIRE(rows >= 0 && cols >= 0, "expected sizes >= 0, got ", rows, " x ", cols);
  DeviceArray array;
  array.tensor = {nullptr, rows, cols, cols, result_dtype(dtype)};
  array.place = owner.backend().place();
  array.fetch = owner.backend().fetch_rows();
  py::gil_scoped_release release;
  array.memory = owner.allocate(static_cast<std::size_t>(rows) * array.tensor.row_bytes());
  array.tensor.data = array.memory.get();
  return array;
}

template <class Owner>
void bind_memory_of(py::class_<Owner>& owner) {
  owner.def("borrow", &borrow<Owner>, py::arg("name"), py::arg("tensor"), py::arg("integers") = false)
      .def("empty", &empty<Owner>, py::arg("rows"), py::arg("cols"), py::arg("dtype"))
      .def_property_readonly("place", [](const Owner& self) {
        const Place place = self.backend().place();
        return std::pair<int, int>(place.type, place.id);
      });
}

// The rows of an array in host memory where they are, if the device reads them there.
std::optional<DeviceArray> view(const Engine& engine, const py::array& x) {
  const RowSource rows = rows_of("X", engine.backend(), x, engine.n_features());
  if (!engine.backend().reads(rows) || rows.stride_bytes % x.itemsize() != 0) return std::nullopt;
  return view_of(x, rows.dtype, engine.backend().fetch_rows());
}

void take(const Engine& engine, const Rows& x, const Order& order, const DeviceArray& to,
          std::int64_t first) {
  const RowSource rows = rows_of("X", engine.backend(), x, to.tensor.cols);
  const std::int64_t* indices = order_of(order, rows.rows);
  const std::int64_t count = order ? order->size() : rows.rows;
  FS_REQUIRE(first >= 0 && first + count <= to.tensor.rows, "to: expected room for rows up to ",
             first + count, ", got ", to.tensor.rows);
  const Tensor target = to.tensor.slice_rows(first, count);
  py::gil_scoped_release release;
  if (count > 0) engine.take(rows, indices, target);
}

std::int64_t first_row_outside(const Engine& engine, const DeviceArray& x, double low, double high) {
  const RowSource rows = rows_of("X", engine.backend(), x, x.tensor.cols);
  py::gil_scoped_release release;
  return engine.first_row_outside(rows, low, high);
}

}  // namespace

// NumPy has no bfloat16: its bits are integers there.
py::dtype numpy_dtype(DType dtype) { return py::dtype(dtype == DType::bf16 ? "uint16" : dtype_name(dtype)); }

RowSource rows_of(const char* name, const Backend& backend, const Rows& rows, std::int64_t cols) {
  if (const auto* x = std::get_if<DeviceArray>(&rows)) {
    FS_REQUIRE(x->place == backend.place(), name, ": expected rows on ", place_name(backend.place()),
               ", got them on ", place_name(x->place));
    FS_REQUIRE(x->tensor.dtype != DType::i32, name, ": expected rows of floats, got int32");
    FS_REQUIRE(!x->vector && x->tensor.cols == cols, name, ": expected ", cols, " columns, got ",
               x->vector ? text("1 dimension") : text(x->tensor.cols));
    return rows_of(*x);
  }
  const auto& x = std::get<py::array>(rows);
  const std::optional<DType> type = element_of(x);
  FS_REQUIRE(type && *type != DType::i32, name, ": expected an array of float32 or float64");
  FS_REQUIRE(is_rows(x, cols), name, ": expected ", cols, " columns, got ",
             x.ndim() == 2 ? text(x.shape(1)) : text(x.ndim(), " dimensions"));
  FS_REQUIRE(contiguous_rows(x), name, ": expected rows that are contiguous in memory");
  return rows_of(x);
}

RowTarget output_of(const char* name, Rows& out, const Backend& backend, DType dtype, const RowSource& in,
                    std::int64_t cols) {
  const Place place = backend.place();
  const std::size_t bytes = static_cast<std::size_t>(in.rows * cols) * size_of(dtype);
  RowTarget target(nullptr);
  if (const auto* array = std::get_if<DeviceArray>(&out)) {
    const Tensor& t = array->tensor;
    FS_REQUIRE(array->place == place && t.dtype == dtype && !array->vector && t.rows == in.rows &&
                   t.cols == cols && array->dense() && !array->read_only,
               name, ": expected a writable dense ", dtype_name(dtype), " array of ", in.rows, " x ", cols,
               " on ", place_name(place), ", got ", t.rows, " x ", t.cols, " of ", dtype_name(t.dtype),
               " on ", place_name(array->place), array->read_only ? ", read-only" : "");
    target = {t.data, true};
  } else {
    auto& host = std::get<py::array>(out);
    FS_REQUIRE(is_target(host, in.rows, cols, dtype), name, ": expected a writable C-contiguous ",
               dtype_name(dtype), " array of ", in.rows, " x ", cols);
    target = host.mutable_data();
  }
  FS_REQUIRE(apart(target.data, bytes, in), name,
             ": expected memory of its own, got memory that the input uses");
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

void bind_arrays(py::module_& m) {
  m.def("is_readable", &is_readable, py::arg("X"), py::arg("cols"),
        "Whether X is an array of so many columns whose rows are read where they are.");
  m.def(
      "is_writable",
      [](py::handle out, const py::array& x, std::int64_t cols, const std::string& dtype) {
        return is_writable(out, x, cols, result_dtype(dtype));
      },
      py::arg("out"), py::arg("X"), py::arg("cols"), py::arg("dtype"),
      "Whether out is an array that so many numbers for each row of X are written to where it is.");
}

void bind_rows(py::class_<Engine>& engine) {
  engine.def("has_room", &Engine::has_room, py::arg("bytes"), py::call_guard<py::gil_scoped_release>())
      .def("view", &view, py::arg("X"))
      .def("take", &take, py::arg("X"), py::arg("order"), py::arg("to"), py::arg("first"))
      .def("first_row_outside", &first_row_outside, py::arg("X"), py::arg("low"), py::arg("high"));
}

void bind_memory(py::class_<Engine>& engine) { bind_memory_of(engine); }
void bind_memory(py::class_<TopKEncoder>& encoder) { bind_memory_of(encoder); }

}  // namespace fastsae
