// The tensors of a sparse code.
#include <algorithm>

#include "core/error.h"
#include "models/sparse_code.h"

namespace fastsae {

Tensor* SparseCode::declare_parameter(Arena& parameters, Arena& gradients, const char* name,
                                      std::int64_t rows, std::int64_t cols, bool by_model) {
  Tensor* value = &parameters.declare(name, rows, cols, spec_.dtype, backend_.wants_shadows() && by_model);
  Tensor* gradient = &gradients.declare(text("gradient.", name), rows, cols, spec_.dtype);
  parameters_.push_back({value, gradient, 0, by_model});
  return value;
}

void SparseCode::declare(Arena& parameters, Arena& gradients, Arena& matrices, Arena& state) {
  const std::int64_t n = code_.latents, d = spec_.n_features, o = spec_.n_outputs;
  const auto gradient = [this] { return parameters_.back().gradient; };
  w_.encoder = declare_parameter(parameters, matrices, "W_enc", n, d, true);
  encoder_gradient_ = gradient();
  w_.bias = declare_parameter(parameters, gradients, is("gated") ? "b_gate" : "b_enc", 1, n);
  bias_gradient_ = gradient();
  w_.decoder = declare_parameter(parameters, matrices, "W_dec", n, o, true);
  decoder_gradient_ = gradient();
  w_.decoder_bias = declare_parameter(parameters, gradients, "b_dec", 1, o);
  decoder_bias_gradient_ = gradient();
  if (is("jump_relu")) w_.threshold = declare_parameter(parameters, gradients, "threshold", 1, n);
  if (is("gated")) {
    w_.magnitude_bias = declare_parameter(parameters, gradients, "b_mag", 1, n);
    w_.log_gain = declare_parameter(parameters, gradients, "r_mag", 1, n);
  }
  if (code_.skip) w_.skip = declare_parameter(parameters, gradients, "W_skip", o, d);
  since_ = &state.declare("rows_since_fired", 1, n, DType::f64);
  fired_rows_ = &state.declare("fired_rows", 1, n, DType::f64);
  monitor_ = &state.declare("monitor", 1, sizeof(CodeMonitor) / sizeof(double), DType::f64);
  if (spec_.loss_reduction == "fvu_data") data_variance_ = &state.declare("data_variance", 1, 1, DType::f64);
  if (is("batch_topk")) bar_ = &state.declare("batch_threshold", 1, 1, DType::f64);
}

// Elements that a step selects at most.
std::int64_t SparseCode::most_selected(std::int64_t rows) const {
  const double most = std::max(code_.k, code_.k_start);
  const std::int64_t count =
      is("topk")
          ? rows * static_cast<std::int64_t>(most)
          : std::min(rows * code_.latents, static_cast<std::int64_t>(most * static_cast<double>(rows)));
  FS_REQUIRE(count <= INT32_MAX, "batch_size: ", rows, " rows select ", count, " elements, more than ",
             INT32_MAX);
  return count;
}

void SparseCode::declare_scratch(Arena& scratch, std::int64_t rows) {
  const std::int64_t n = code_.latents, d = spec_.n_features, o = spec_.n_outputs, wide = std::max({n, d, o});
  const DType s = spec_.dtype;
  const auto doubles = [&](const char* name, std::int64_t r, std::int64_t c) {
    return &scratch.declare(name, r, c, DType::f64);
  };
  scalar_ = doubles("scalar", 1, 1);
  sums_ = doubles("code_sums", 1, sizeof(CodeSums) / sizeof(double));
  if (code_.pre_bias) inputs_ = &scratch.declare("inputs", rows, d, s, backend_.wants_shadows());
  const std::int64_t slots = errors_per_row();
  FS_REQUIRE(rows * slots <= INT32_MAX, "batch_size: ", rows, " rows with ", slots,
             " errors each are more than ", INT32_MAX);
  errors_ = &scratch.declare("errors", rows * slots, o, s, dense_ && backend_.wants_shadows());
  if (code_.skip) extra_ = &scratch.declare("skipped", rows, o, s);
  norms_ = &scratch.declare("norms", 1, n, s);
  losses_ = doubles("row_losses", rows, 1);
  last_losses_ = doubles("last_losses", rows, 1);
  output_sums_ = doubles("output_sums", 1, o);
  through_ = &scratch.declare("through", 2, wide, s);
  squares_ = doubles("squares", 1, n);
  fired_ = doubles("fired", 1, n);
  vector_sums_ = doubles("vector_sums", 5, wide);
  if (has_auxiliary()) residual_ = &scratch.declare("residual", rows, o, s);
  if (dense_) return declare_tiles(scratch, rows);
  std::int64_t capacity = most_selected(rows);
  declare_selected(scratch, main_, "code", rows, capacity);
  if (has_auxiliary()) {
    const std::int64_t dead = rows * std::min(code_.aux_k, n);
    declare_selected(scratch, auxiliary_, "auxiliary", rows, dead);
    capacity += dead;
  }
  declare_index(scratch, capacity);
}

void SparseCode::declare_selected(Arena& scratch, Selected& made, const std::string& name, std::int64_t rows,
                                  std::int64_t capacity) {
  made.starts = &scratch.declare(name + "_starts", 1, rows + 1, DType::i32);
  made.latents = &scratch.declare(name + "_latents", 1, capacity, DType::i32);
  made.values = &scratch.declare(name + "_values", 1, capacity, spec_.dtype);
  made.slopes = &scratch.declare(name + "_slopes", 1, capacity, spec_.dtype);
}

void SparseCode::declare_index(Arena& scratch, std::int64_t capacity) {
  FS_REQUIRE(capacity <= INT32_MAX, "batch_size: a step would select ", capacity, " elements, more than ",
             INT32_MAX);
  const std::int64_t segments = 2 * capacity / LatentIndex::kSegment + 1;
  const auto make = [&](const char* name, std::int64_t r, std::int64_t c, DType dtype) {
    return &scratch.declare(text("index_", name), r, c, dtype);
  };
  index_parts_[0] = make("begins", 1, code_.latents + 1, DType::i32);
  index_parts_[1] = make("slots", 1, capacity, DType::i32);
  index_parts_[2] = make("values", 1, capacity, spec_.dtype);
  index_parts_[3] = make("slopes", 1, capacity, spec_.dtype);
  index_parts_[4] = make("segments", segments, 2, DType::i32);
  index_parts_[5] = make("partials", segments, spec_.n_features + spec_.n_outputs, spec_.dtype);
}

const Tensor& SparseCode::gradient_of(const Tensor* value) const {
  const auto of = std::find_if(parameters_.begin(), parameters_.end(),
                               [value](const Parameter& parameter) { return parameter.value == value; });
  return *of->gradient;
}

LatentIndex SparseCode::index() const {
  if (dense_ && !collects()) return {};
  const auto& part = index_parts_;
  return {*part[0], *part[1], *part[2], *part[3], *part[4], *part[5]};
}

}  // namespace fastsae
