// The Python module: conversions and nothing else.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>

#include "backend/process.h"
#include "core/error.h"
#include "engine/engine.h"

namespace py = pybind11;

namespace fastsae {
namespace {

using Weights = std::optional<py::array_t<double, py::array::c_style>>;
using Order = std::optional<py::array_t<std::int64_t, py::array::c_style>>;

// Lets Python's signal handlers run, at most every 50 ms; they raise KeyboardInterrupt from here.
void check_signals() {
  static thread_local std::int64_t last = 0;  // only the main thread's call has an effect
  const std::int64_t now = std::chrono::duration_cast<std::chrono::milliseconds>(
                               std::chrono::steady_clock::now().time_since_epoch())
                               .count();
  if (now - last < 50) return;
  last = now;
  py::gil_scoped_acquire gil;
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

DType dtype_from(const std::string& name) {
  FS_REQUIRE(name == "float32" || name == "float64", "dtype: expected 'float32' or 'float64', got '", name,
             "'");
  return name == "float32" ? DType::f32 : DType::f64;
}

Precision precision_from(const std::string& name) {
  if (name == "tf32") return Precision::tf32;
  if (name == "bf16") return Precision::bf16;
  FS_REQUIRE(name == "full", "precision: expected 'full', 'tf32' or 'bf16', got '", name, "'");
  return Precision::full;
}

py::dtype numpy_dtype(DType dtype) {
  return dtype == DType::f32 ? py::dtype::of<float>() : py::dtype::of<double>();
}

RowSource rows_of(const char* name, const py::array& x, std::int64_t cols) {
  const bool f32 = py::isinstance<py::array_t<float>>(x), f64 = py::isinstance<py::array_t<double>>(x);
  FS_REQUIRE(f32 || f64, name, ": expected an array of float32 or float64");
  FS_REQUIRE(x.ndim() == 2 && x.shape(1) == cols, name, ": expected ", cols, " columns, got ",
             x.ndim() == 2 ? text(x.shape(1)) : text(x.ndim(), " dimensions"));
  FS_REQUIRE(x.size() == 0 || cols == 1 || x.strides(1) == x.itemsize(), name,
             ": expected rows that are contiguous in memory");
  return {x.data(), x.shape(0), cols, x.strides(0), f32 ? DType::f32 : DType::f64};
}

const double* weights_of(const Weights& weights, std::int64_t rows) {
  if (!weights) return nullptr;
  FS_REQUIRE(weights->size() == rows, "sample_weight: expected ", rows, " numbers, got ", weights->size());
  return weights->data();
}

void* output_of(py::array& out, DType dtype, std::int64_t rows, std::int64_t cols) {
  FS_REQUIRE(out.dtype().equal(numpy_dtype(dtype)) && out.ndim() == 2 && out.shape(0) == rows &&
                 out.shape(1) == cols && (out.flags() & py::array::c_style) && out.writeable(),
             "out: expected a writable C-contiguous array of ", rows, " x ", cols, " in the model's dtype");
  return out.mutable_data();
}

py::dict cost_dict(const Cost& cost) {
  py::dict parts;
  parts["loss"] = cost.loss();
  parts["reconstruction"] = cost.reconstruction;
  parts["penalty"] = cost.penalty;
  parts["decay"] = cost.decay;
  parts["gradient_norm"] = cost.gradient_norm;
  return parts;
}

template <class T>
T option(const py::dict& options, const char* name) {
  return options[name].cast<T>();
}

std::unique_ptr<Engine> make_engine(const py::dict& c, std::int64_t code_layer, const std::string& device,
                                    std::int64_t full_batch_rows) {
  const auto name = option<std::string>(c, "optimizer");
  ModelSpec model;
  model.n_features = option<std::int64_t>(c, "n_features");
  for (const py::handle item : c["layers"]) {
    const auto layer = item.cast<py::dict>();
    model.layers.push_back({option<std::int64_t>(layer, "units"), option<std::string>(layer, "activation"),
                            option<std::string>(layer, "penalty"), option<double>(layer, "beta"),
                            option<double>(layer, "rho")});
  }
  model.code_layer = code_layer;
  model.loss = option<std::string>(c, "loss");
  model.loss_reduction = option<std::string>(c, "loss_reduction");
  model.tied = option<bool>(c, "tied");
  model.weight_decay = option<double>(c, "weight_decay");
  model.decoupled_decay = name == "adamw";
  model.moving_rho_hat = option<std::string>(c, "rho_hat") == "ema";
  model.rho_hat_decay = option<double>(c, "rho_hat_decay");
  model.dtype = dtype_from(option<std::string>(c, "dtype"));
  const OptimizerSpec optimizer{name,
                                option<double>(c, "learning_rate"),
                                option<double>(c, "momentum"),
                                option<double>(c, "beta1"),
                                option<double>(c, "beta2"),
                                option<double>(c, "epsilon"),
                                model.weight_decay};
  const Precision precision = precision_from(option<std::string>(c, "precision"));
  py::gil_scoped_release release;
  return std::make_unique<Engine>(model, optimizer, make_backend(device, precision, check_signals),
                                  full_batch_rows);
}

py::array read_tensor(const Engine& engine, const std::string& name) {
  const Tensor& tensor = engine.tensor(name);
  py::array out(numpy_dtype(tensor.dtype), std::vector<py::ssize_t>{tensor.rows, tensor.cols});
  void* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    engine.read(name, to);
  }
  return out;
}

void write_tensor(Engine& engine, const std::string& name, const py::array& value) {
  const Tensor& tensor = engine.tensor(name);
  FS_REQUIRE(value.ndim() == 2 && value.shape(0) == tensor.rows && value.shape(1) == tensor.cols, name,
             ": expected shape ", tensor.rows, " x ", tensor.cols);
  FS_REQUIRE(value.dtype().equal(numpy_dtype(tensor.dtype)) && (value.flags() & py::array::c_style), name,
             ": expected a C-contiguous array of the tensor's dtype");
  const void* from = value.data();
  py::gil_scoped_release release;
  engine.write(name, from);
}

void run_epoch(Engine& engine, const py::array& x, const Order& order, std::int64_t batch,
               const Weights& weights) {
  const RowSource rows = rows_of("X", x, engine.n_features());
  const double* w = weights_of(weights, rows.rows);
  FS_REQUIRE(batch >= 1, "batch_size: expected an integer >= 1, got ", batch);
  const std::int64_t* indices = order ? order->data() : nullptr;
  const std::int64_t count = order ? order->size() : rows.rows;
  for (std::int64_t i = 0; indices != nullptr && i < count; ++i) {
    FS_REQUIRE(indices[i] >= 0 && indices[i] < rows.rows, "order: expected row numbers in [0, ", rows.rows,
               "), got ", indices[i]);
  }
  py::gil_scoped_release release;
  engine.run(rows, w, indices, count, batch);
}

}  // namespace
}  // namespace fastsae

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  using namespace fastsae;
  // Nobody waits for an engine while holding the GIL: whoever has the engine may want the GIL to look for
  // signals.
  using Released = py::call_guard<py::gil_scoped_release>;
  m.doc() = "The compiled part of fastsae.";

  auto device_error = py::register_exception<DeviceError>(m, "DeviceError", PyExc_RuntimeError);
  device_error.doc() = "A device, or a library it needs, cannot be used.";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const ValueError& e) {
      PyErr_SetString(PyExc_ValueError, e.what());
    } catch (const NonFiniteError& e) {
      PyErr_SetString(PyExc_FloatingPointError, e.what());
    }
  });

  py::class_<Engine>(m, "Engine")
      .def(py::init(&make_engine), py::arg("config"), py::arg("code_layer"), py::arg("device"),
           py::arg("full_batch_rows") = 0)
      .def("run", &run_epoch, py::arg("X"), py::arg("order"), py::arg("batch_size"), py::arg("sample_weight"))
      .def(
          "gradient",
          [](Engine& engine, const py::array& x, const Weights& weights) {
            const RowSource rows = rows_of("X", x, engine.n_features());
            const double* w = weights_of(weights, rows.rows);
            py::gil_scoped_release release;
            const Cost cost = engine.gradient(rows, w);
            py::gil_scoped_acquire acquire;
            return cost_dict(cost);
          },
          py::arg("X"), py::arg("sample_weight"))
      .def(
          "evaluate",
          [](Engine& engine, const py::array& x, const Weights& weights) {
            const RowSource rows = rows_of("X", x, engine.n_features());
            const double* w = weights_of(weights, rows.rows);
            py::gil_scoped_release release;
            const Cost cost = engine.evaluate(rows, w);
            py::gil_scoped_acquire acquire;
            return cost_dict(cost);
          },
          py::arg("X"), py::arg("sample_weight"))
      .def(
          "encode",
          [](const Engine& engine, const py::array& x, py::array& out) {
            const RowSource rows = rows_of("X", x, engine.n_features());
            void* to = output_of(out, engine.dtype(), rows.rows, engine.code_width());
            py::gil_scoped_release release;
            engine.encode(rows, to);
          },
          py::arg("X"), py::arg("out"))
      .def(
          "decode",
          [](const Engine& engine, const py::array& code, py::array& out) {
            const RowSource rows = rows_of("H", code, engine.code_width());
            void* to = output_of(out, engine.dtype(), rows.rows, engine.n_features());
            py::gil_scoped_release release;
            engine.decode(rows, to);
          },
          py::arg("H"), py::arg("out"))
      .def(
          "reconstruct",
          [](const Engine& engine, const py::array& x, py::array& out) {
            const RowSource rows = rows_of("X", x, engine.n_features());
            void* to = output_of(out, engine.dtype(), rows.rows, engine.n_features());
            py::gil_scoped_release release;
            engine.reconstruct(rows, to);
          },
          py::arg("X"), py::arg("out"))
      .def(
          "score",
          [](const Engine& engine, const py::array& x) {
            const RowSource rows = rows_of("X", x, engine.n_features());
            py::array_t<double> losses(rows.rows);
            double* to = losses.mutable_data();
            py::gil_scoped_release release;
            engine.score(rows, to);
            py::gil_scoped_acquire acquire;
            return losses;
          },
          py::arg("X"))
      .def("names", &Engine::names)
      .def("get", &read_tensor, py::arg("name"))
      .def("set", &write_tensor, py::arg("name"), py::arg("value"))
      .def("metrics",
           [](const Engine& engine) {
             Metrics metrics;
             {
               py::gil_scoped_release release;
               metrics = engine.metrics();
             }
             py::dict sums = cost_dict(metrics.sums);
             sums["weight"] = metrics.weight;
             sums["steps"] = metrics.steps;
             sums["rows"] = metrics.rows;
             return sums;
           })
      .def("reset_metrics", &Engine::reset_metrics, Released())
      .def_property("steps", py::cpp_function(&Engine::steps, Released()),
                    py::cpp_function(&Engine::set_steps, Released()))
      .def_property("learning_rate", py::cpp_function(&Engine::learning_rate, Released()),
                    py::cpp_function(&Engine::set_learning_rate, Released()))
      .def_property_readonly("code_width", &Engine::code_width);

  m.def("kernel_names", &kernel_names);
  m.def("devices", &devices);
  m.def("cuda_unavailable_reason", &cuda_unavailable_reason);
  m.def("cuda_blas", &cuda_blas_name);
  m.def("num_threads", &num_threads);
  m.def("set_num_threads", &set_num_threads, py::arg("count"));
  m.def("isa", &isa_name);
  m.def("blas", &blas_name);
}
