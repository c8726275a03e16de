#include "bindings/sparse_code.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstring>

namespace py = pybind11;

namespace fastsae {
namespace {

template <class T>
T option(const py::dict& options, const char* name) {
  return options[name].cast<T>();
}

py::array copied(const char* dtype, const void* from, std::size_t count, std::size_t size) {
  py::array array(py::dtype(dtype), std::vector<py::ssize_t>{static_cast<py::ssize_t>(count)});
  if (count > 0) std::memcpy(array.mutable_data(), from, count * size);
  return array;
}

}  // namespace

SparseCodeSpec sparse_code_from(const py::dict& c) {
  const auto word = [&](const char* field) { return option<std::string>(c, field); };
  const auto whole = [&](const char* field) { return option<std::int64_t>(c, field); };
  const auto real = [&](const char* field) { return option<double>(c, field); };
  const auto flag = [&](const char* field) { return option<bool>(c, field); };
  SparseCodeSpec spec{};
  spec.latents = whole("n_latents");
  spec.activation = word("activation");
  spec.skip = flag("skip");
  spec.pre_bias = flag("pre_bias");
  spec.decoder_norm = word("decoder_norm");
  spec.project_gradient = flag("project_gradient");
  spec.k = real("k");
  spec.k_start = real("k_start");
  spec.k_warm_up = whole("k_warm_up");
  spec.prefixes = option<std::vector<std::int64_t>>(c, "prefixes");
  spec.prefix_weights = option<std::vector<double>>(c, "prefix_weights");
  spec.sparsity = word("sparsity");
  spec.sparsity_weight = real("sparsity_weight");
  spec.sparsity_by_norm = flag("sparsity_by_norm");
  spec.sparsity_warm_up = whole("sparsity_warm_up");
  spec.target_l0 = real("target_l0");
  spec.tanh_scale = real("tanh_scale");
  spec.pre_act_weight = real("pre_act_weight");
  spec.bandwidth = real("bandwidth");
  spec.gate_weight = real("gate_weight");
  spec.gate_detached = flag("gate_detached");
  spec.aux_k = whole("aux_k");
  spec.aux_weight = real("aux_weight");
  spec.aux_relu = flag("aux_relu");
  spec.aux_share = flag("aux_share");
  spec.aux_reduction = word("aux_reduction");
  spec.dead_after = real("dead_after");
  spec.threshold_decay = real("threshold_decay");
  return spec;
}

py::tuple encode_sparse(const Engine& engine, const Rows& x) {
  const RowSource rows = rows_of("X", engine.backend(), x, engine.n_features());
  Engine::SparseRows made;
  {
    py::gil_scoped_release release;
    made = engine.encode_sparse(rows);
  }
  const std::size_t count = made.columns.size();
  return py::make_tuple(copied("int64", made.starts.data(), made.starts.size(), sizeof(std::int64_t)),
                        copied("int32", made.columns.data(), count, sizeof(std::int32_t)),
                        copied(engine.dtype() == DType::f32 ? "float32" : "float64", made.values.data(),
                               count, size_of(engine.dtype())));
}

}  // namespace fastsae
