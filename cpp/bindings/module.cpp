// The Python module: conversions and nothing else.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <limits>
#include <memory>

#include "backend/process.h"
#include "bindings/device_array.h"
#include "bindings/process.h"
#include "bindings/rows.h"
#include "bindings/sparse_code.h"
#include "bindings/tensors.h"
#include "core/error.h"
#include "engine/engine.h"
#include "engine/topk_encoder.h"

namespace py = pybind11;

namespace fastsae {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Weights = std::optional<py::array_t<double, py::array::c_style>>;

// Ends the work of other threads.
struct Stop {
  std::atomic<bool> wanted{false};
};
thread_local std::shared_ptr<const Stop> stop_of_this_thread;

// Lets Python's signal handlers run, at most every 50 ms; they raise KeyboardInterrupt from here.
void check_signals() {
  if (stop_of_this_thread && stop_of_this_thread->wanted) {
    py::gil_scoped_acquire gil;
    PyErr_SetNone(PyExc_KeyboardInterrupt);
    throw py::error_already_set();
  }
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

StatePrecision state_precision_from(const std::string& name) {
  if (name == "full") return StatePrecision::full;
  if (name == "bf16") return StatePrecision::bf16;
  FS_REQUIRE(name == "8bit", "state_precision: expected 'full', 'bf16' or '8bit', got '", name, "'");
  return StatePrecision::eight_bits;
}

Precision precision_from(const std::string& name) {
  if (name == "tf32") return Precision::tf32;
  if (name == "bf16") return Precision::bf16;
  FS_REQUIRE(name == "full", "precision: expected 'full', 'tf32' or 'bf16', got '", name, "'");
  return Precision::full;
}

const double* weights_of(const Weights& weights, std::int64_t rows) {
  if (!weights) return nullptr;
  FS_REQUIRE(weights->size() == rows, "sample_weight: expected ", rows, " numbers, got ", weights->size());
  return weights->data();
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

Shape shape_from(const py::dict& layer, const char* name) {
  const auto [channels, height, width] =
      option<std::tuple<std::int64_t, std::int64_t, std::int64_t>>(layer, name);
  return {channels, height, width};
}

LayerSpec layer_from(const py::dict& layer) {
  LayerSpec spec;
  spec.kind = option<std::string>(layer, "kind");
  spec.number = option<std::int64_t>(layer, "number");
  spec.in = shape_from(layer, "in");
  spec.out = shape_from(layer, "out");
  spec.below = spec.in;
  spec.activation = option<std::string>(layer, "activation");
  spec.penalty = option<std::string>(layer, "penalty");
  spec.beta = option<double>(layer, "beta");
  spec.rho = option<double>(layer, "rho");
  spec.weight_decay = option<double>(layer, "weight_decay");
  spec.weight_l1 = option<double>(layer, "weight_l1");
  spec.per_position = option<bool>(layer, "per_position");
  spec.kernel = option<std::int64_t>(layer, "kernel");
  spec.stride = option<std::int64_t>(layer, "stride");
  spec.padding = option<std::int64_t>(layer, "padding");
  spec.places_of = option<std::int64_t>(layer, "places_of");
  spec.winners = option<std::string>(layer, "winners");
  spec.lifetime = option<double>(layer, "lifetime");
  spec.free_bits = option<double>(layer, "free_bits");
  spec.warm_up = option<double>(layer, "warm_up");
  return spec;
}

// The fields of a list of layers.
void take_layers(const py::dict& c, ModelSpec& model) {
  const auto word = [&](const char* field) { return option<std::string>(c, field); };
  const auto real = [&](const char* field) { return option<double>(c, field); };
  for (const py::handle item : c["layers"]) model.layers.push_back(layer_from(item.cast<py::dict>()));
  model.code_layer = option<std::int64_t>(c, "code_layer");
  model.corruption = {word("corruption"),      real("corruption_level"), real("corruption_low"),
                      real("corruption_high"), real("emphasis"),         real("emphasis_rest")};
  model.contraction = {real("contraction"), real("contraction_hessian"), real("contraction_noise")};
  model.loss = word("loss");
  model.tied = option<bool>(c, "tied");
  model.decoupled_decay = word("optimizer") == "adamw";
  model.moving_rho_hat = word("rho_hat") == "ema";
  model.rho_hat_decay = real("rho_hat_decay");
}

// What core() of fastsae.Config or fastsae.SparseCodeConfig made.
std::unique_ptr<Engine> make_engine(const py::dict& c, const std::string& device,
                                    std::int64_t full_batch_rows) {
  const auto word = [&](const char* field) { return option<std::string>(c, field); };
  const auto whole = [&](const char* field) { return option<std::int64_t>(c, field); };
  const auto real = [&](const char* field) { return option<double>(c, field); };
  const std::string name = word("optimizer");
  ModelSpec model{};
  model.n_features = whole("n_features");
  model.n_outputs = whole("n_outputs");
  model.dtype = dtype_from(word("dtype"));
  model.loss_reduction = word("loss_reduction");
  if (c.contains("layers"))
    take_layers(c, model);
  else
    model.sparse_code = sparse_code_from(c);
  const double longest = option<std::optional<double>>(c, "max_grad_norm").value_or(kInfinity);
  const auto total_steps = option<std::optional<std::int64_t>>(c, "lr_total_steps");
  const auto decay_steps = option<std::optional<std::int64_t>>(c, "lr_decay_steps");
  const Schedule schedule{word("lr_schedule"),     whole("lr_warm_up"),
                          total_steps.value_or(0), real("lr_final"),
                          whole("lr_step_size"),   real("lr_gamma"),
                          decay_steps.value_or(0), option<std::optional<double>>(c, "lr_start").value_or(-1)};
  const StatePrecision kept =
      state_precision_from(c.contains("state_precision") ? word("state_precision") : "full");
  const OptimizerSpec optimizer{name,          real("learning_rate"), real("momentum"), real("beta1"),
                                real("beta2"), real("epsilon"),       longest,          schedule,
                                kept};
  const Precision precision = precision_from(word("precision"));
  py::gil_scoped_release release;
  return std::make_unique<Engine>(model, optimizer, make_backend(device, precision, check_signals),
                                  full_batch_rows);
}

using Numbers = std::optional<py::array_t<std::int64_t, py::array::c_style>>;

Examples examples_of(const Engine& engine, const Rows& x, const Weights& weights,
                     const std::optional<Rows>& target, const Numbers& numbers) {
  Examples examples{rows_of("X", engine.backend(), x, engine.n_features())};
  const std::int64_t rows = examples.x.rows;
  examples.weights = weights_of(weights, rows);
  if (target) {
    examples.target = rows_of("targets", engine.backend(), *target, engine.n_outputs());
    FS_REQUIRE(examples.target.rows == rows, "targets: expected ", rows, " rows, got ", examples.target.rows);
  } else {
    FS_REQUIRE(engine.n_outputs() == engine.n_features(), "targets: expected rows of ", engine.n_outputs(),
               " numbers, got none");
  }
  if (numbers) {
    FS_REQUIRE(numbers->size() == rows, "numbers: expected ", rows, " integers, got ", numbers->size());
    examples.numbers = numbers->data();
  }
  return examples;
}

void run_epoch(Engine& engine, const Rows& x, const Order& order, std::int64_t batch, const Weights& weights,
               const std::optional<Rows>& target, const Numbers& numbers) {
  const Examples examples = examples_of(engine, x, weights, target, numbers);
  FS_REQUIRE(batch >= 1, "batch_size: expected an integer >= 1, got ", batch);
  const std::int64_t* indices = order_of(order, examples.x.rows);
  const std::int64_t count = order ? order->size() : examples.x.rows;
  py::gil_scoped_release release;
  engine.run(examples, indices, count, batch);
}

std::unique_ptr<TopKEncoder> make_topk_encoder(const py::array& weight, const std::optional<py::array>& bias,
                                               std::int64_t k, const std::string& device,
                                               const std::string& dtype, const std::string& precision) {
  FS_REQUIRE(weight.ndim() == 2, "weight: expected 2 dimensions, got ", weight.ndim());
  const DType type = dtype_from(dtype);
  std::unique_ptr<Backend> backend = make_backend(device, precision_from(precision), check_signals);
  const RowSource weight_rows = rows_of("weight", *backend, weight, weight.shape(1));
  std::optional<RowSource> bias_row;
  if (bias) bias_row = rows_of("bias", *backend, *bias, weight.shape(0));
  py::gil_scoped_release release;
  return std::make_unique<TopKEncoder>(weight_rows, bias_row ? &*bias_row : nullptr, k, type,
                                       std::move(backend));
}

template <Cost (Engine::*Compute)(const Examples&)>
py::dict cost_of(Engine& engine, const Rows& x, const Weights& weights, const std::optional<Rows>& target,
                 const Numbers& numbers) {
  const Examples examples = examples_of(engine, x, weights, target, numbers);
  Cost cost;
  {
    py::gil_scoped_release release;
    cost = (engine.*Compute)(examples);
  }
  return cost_dict(cost);
}

using Infer = void (Engine::*)(const RowSource&, RowTarget) const;

void infer(const Engine& engine, Infer compute, const char* name, const Rows& in, std::int64_t in_cols,
           Rows& out, std::int64_t out_cols) {
  const RowSource rows = rows_of(name, engine.backend(), in, in_cols);
  const RowTarget to = output_of("out", out, engine.backend(), engine.dtype(), rows, out_cols);
  py::gil_scoped_release release;
  (engine.*compute)(rows, to);
}

using Score = void (Engine::*)(const RowSource&, const RowSource&, double*) const;

py::array_t<double> score(const Engine& engine, Score compute, const char* name, const Rows& in,
                          std::int64_t in_cols, const std::optional<Rows>& target) {
  const RowSource rows = rows_of(name, engine.backend(), in, in_cols);
  const RowSource goal = target ? rows_of("targets", engine.backend(), *target, engine.n_outputs()) : rows;
  FS_REQUIRE(goal.cols == engine.n_outputs(), "targets: expected rows of ", engine.n_outputs(),
             " numbers, got none");
  FS_REQUIRE(goal.rows == rows.rows, "targets: expected ", rows.rows, " rows, got ", goal.rows);
  py::array_t<double> losses(rows.rows);
  double* to = losses.mutable_data();
  py::gil_scoped_release release;
  (engine.*compute)(rows, goal, to);
  py::gil_scoped_acquire acquire;
  return losses;
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

  bind_device_array(m);
  bind_arrays(m);

  py::class_<Engine> engine(m, "Engine");
  engine.def(py::init(&make_engine), py::arg("config"), py::arg("device"), py::arg("full_batch_rows") = 0)
      .def("run", &run_epoch, py::arg("X"), py::arg("order"), py::arg("batch_size"), py::arg("sample_weight"),
           py::arg("targets"), py::arg("numbers"))
      .def("gradient", &cost_of<&Engine::gradient>, py::arg("X"), py::arg("sample_weight"),
           py::arg("targets"), py::arg("numbers"))
      .def("evaluate", &cost_of<&Engine::evaluate>, py::arg("X"), py::arg("sample_weight"),
           py::arg("targets"), py::arg("numbers"))
      .def(
          "encode",
          [](const Engine& e, const Rows& x, Rows& out) {
            infer(e, &Engine::encode, "X", x, e.n_features(), out, e.code_width());
          },
          py::arg("X"), py::arg("out"))
      .def(
          "decode",
          [](const Engine& e, const Rows& code, Rows& out) {
            infer(e, &Engine::decode, "H", code, e.code_width(), out, e.n_outputs());
          },
          py::arg("H"), py::arg("out"))
      .def(
          "reconstruct",
          [](const Engine& e, const Rows& x, Rows& out) {
            infer(e, &Engine::reconstruct, "X", x, e.n_features(), out, e.n_outputs());
          },
          py::arg("X"), py::arg("out"))
      .def("encode_sparse", &encode_sparse, py::arg("X"))
      .def(
          "encode_distribution",
          [](const Engine& e, const Rows& x, Rows& out) {
            FS_REQUIRE(e.has_distribution(), "the code of this model has no distribution");
            infer(e, &Engine::encode_distribution, "X", x, e.n_features(), out, 2 * e.code_width());
          },
          py::arg("X"), py::arg("out"))
      .def(
          "score",
          [](const Engine& e, const Rows& x, const std::optional<Rows>& targets) {
            return score(e, &Engine::score, "X", x, e.n_features(), targets);
          },
          py::arg("X"), py::arg("targets"))
      .def(
          "score_code",
          [](const Engine& e, const Rows& code, const Rows& targets) {
            return score(e, &Engine::score_code, "H", code, e.code_width(), targets);
          },
          py::arg("H"), py::arg("targets"))
      .def("names", &Engine::names, Released())
      .def("get", &read_tensor<Engine>, py::arg("name"))
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
      .def_property("averaged", py::cpp_function(&Engine::averaged, Released()),
                    py::cpp_function(&Engine::set_averaged, Released()))
      .def_property("noise_seed", py::cpp_function(&Engine::noise_seed, Released()),
                    py::cpp_function(&Engine::set_noise_seed, Released()))
      .def_property("epoch", py::cpp_function(&Engine::epoch, Released()),
                    py::cpp_function(&Engine::set_epoch, Released()))
      .def_property("learning_rate", py::cpp_function(&Engine::learning_rate, Released()),
                    py::cpp_function(&Engine::set_learning_rate, Released()))
      .def_property("total_steps", py::cpp_function(&Engine::total_steps, Released()),
                    py::cpp_function(&Engine::set_total_steps, Released()))
      .def_property_readonly("code_width", &Engine::code_width);

  py::class_<TopKEncoder> encoder(m, "TopKEncoder");
  encoder
      .def(py::init(&make_topk_encoder), py::arg("weight"), py::arg("bias"), py::arg("k"), py::arg("device"),
           py::arg("dtype"), py::arg("precision"))
      .def(
          "encode",
          [](const TopKEncoder& encoder, const Rows& x, Rows& values, Rows& indices) {
            const RowSource rows = rows_of("X", encoder.backend(), x, encoder.n_features());
            const RowTarget to_values =
                output_of("out[0]", values, encoder.backend(), encoder.dtype(), rows, encoder.k());
            const RowTarget to_indices =
                output_of("out[1]", indices, encoder.backend(), DType::i32, rows, encoder.k());
            py::gil_scoped_release release;
            encoder.encode(rows, to_values, to_indices);
          },
          py::arg("X"), py::arg("values"), py::arg("indices"))
      .def("names", &TopKEncoder::names)
      .def("get", &read_tensor<TopKEncoder>, py::arg("name"));
  bind_memory(encoder);
  bind_memory(engine);
  bind_rows(engine);

  py::class_<Stop, std::shared_ptr<Stop>>(m, "Stop").def(py::init<>()).def("set", [](Stop& stop) {
    stop.wanted = true;
  });
  m.def(
      "become_worker",
      [](const std::shared_ptr<Stop>& stop, int threads) {
        limit_threads_here(threads);
        stop_of_this_thread = stop;
      },
      py::arg("stop"), py::arg("threads"),
      "The work of this thread takes at most so many threads, and raises KeyboardInterrupt once `stop` is "
      "set.");
  m.def("kernel_names", &kernel_names);
  bind_process(m);
}
