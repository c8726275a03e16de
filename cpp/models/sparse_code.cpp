// One step of a sparse code, in the words of python/fastsae/reference/sparse_code.py:
//   x~ = x - b_dec,  z = x~ W_enc' + b_enc,  a = the elements of z that are chosen
//   y = a W_dec + b_dec (+ W_skip x),  e = y - target          decode(): one gather
//   dW_dec_j = sum of a e,  dW_enc_j = sum of (e W_dec_j) x~    over the rows that chose j: index, measure, update
// ReLU, JumpReLU and Gated write their codes down, a tile of rows at a time (sparse_code_tiles.cpp).
#include "models/sparse_code.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace fastsae {
SparseCode::SparseCode(const ModelSpec& spec, Backend& backend)
    : spec_(spec),
      code_(*spec.sparse_code),
      dense_(code_.activation != "topk" && code_.activation != "batch_topk"),
      backend_(backend),
      k_(code_.k) {
  FS_REQUIRE(code_.prefixes.size() >= 1 && code_.prefixes.size() <= Prefixes::kMost &&
                 code_.prefixes.size() == code_.prefix_weights.size(),
             "prefixes: expected 1 to ", Prefixes::kMost, " widths with a weight each");
  prefixes_.count = static_cast<std::int32_t>(code_.prefixes.size());
  for (std::size_t i = 0; i < code_.prefixes.size(); ++i) {
    prefixes_.ends[i] = static_cast<std::int32_t>(code_.prefixes[i]);
    prefixes_.weights[i] = code_.prefix_weights[i];
  }
  FS_REQUIRE(code_.prefixes.back() == code_.latents, "prefixes: the last must be n_latents");
}

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
  if (code_.pre_bias) inputs_ = &scratch.declare("inputs", rows, d, s);
  const std::int64_t slots = errors_per_row();
  errors_ = &scratch.declare("errors", rows * slots, o, s);
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

CodeConstants SparseCode::constants() const {
  const double outputs = static_cast<double>(spec_.n_outputs);
  const auto divisor = [&](const std::string& name) {
    return name == "sum"     ? 1.0
           : name == "ufldl" ? 2.0
           : name == "mean"  ? outputs
           : name == "fvu"   ? 0.0
                             : -1.0;
  };
  CodeConstants c{};
  c.divisor = divisor(spec_.loss_reduction);
  c.auxiliary_weight = code_.aux_weight;
  c.auxiliary_divisor = divisor(code_.aux_reduction);
  c.auxiliary_share = code_.aux_share ? static_cast<double>(code_.aux_k) : 0;
  c.gate_weight = is("gated") ? code_.gate_weight : 0;
  c.sparsity_weight = code_.sparsity == "none" ? 0 : code_.sparsity_weight;
  c.target_l0 = code_.sparsity == "quadratic" ? code_.target_l0 : 0;
  c.counts_active = code_.sparsity == "step";
  c.pre_act_weight = counts_dead() ? code_.pre_act_weight : 0;
  return c;
}

void SparseCode::set_step(StepScalars& scalars, std::int64_t step) {
  const auto part = [step](std::int64_t length, std::int64_t done) {
    return length > 0 ? std::min(1.0, static_cast<double>(step - 1 + done) / static_cast<double>(length))
                      : 1.0;
  };
  scalars.penalty_share = part(code_.sparsity_warm_up, 1);
  k_ = code_.k + (code_.k_start - code_.k) * (1 - part(code_.k_warm_up, 0));
  if (is("topk")) k_ = std::max(1.0, std::round(k_));
}

void SparseCode::begin(const StepMemory& memory, bool with_gradient, bool) {
  memory_ = memory;
  with_gradient_ = with_gradient;
}

void SparseCode::scalar_pass(const Kernel& kernel) { backend_.map(*scalar_, kernel, {}); }

void SparseCode::accumulate(const Batch& batch, bool) {
  batch_ = batch;
  backend_.fill(*sums_, 0);
  input_ = batch.x;
  if (code_.pre_bias) {
    input_ = inputs_->slice_rows(0, batch.rows());
    with_scalar(spec_.dtype, [&](auto s) {
      using S = decltype(s);
      backend_.map(input_, as_kernel(Centered<S>{{}, batch.x.view<const S>(), w_.decoder_bias->as<S>()}), {});
    });
  }
  skipped_ = {};
  if (code_.skip) {
    skipped_ = extra_->slice_rows(0, batch.rows());
    backend_.product({batch.x}, {*w_.skip, true}, skipped_, false, nullptr, {});
  }
  if (needs_norms()) backend_.row_norms(*w_.decoder, *norms_);
  add_variance(batch.target, shaped(*errors_, batch.rows(), spec_.n_outputs), &sums()->variance);
  scalar_pass(as_kernel(CodeFactors{{}, sums(), constants(), memory_.scalars}));
  if (dense_)
    accumulate_tiles(batch);
  else
    accumulate_selected(batch);
}

// The weighted variance of rows. `copy` becomes a copy of them, and may be them.
void SparseCode::add_variance(const Tensor& rows, const Tensor& copy, double* to) {
  const Tensor losses = losses_->slice_rows(0, rows.rows);
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    const S* weight = batch_.weight.as<S>();
    backend_.map(copy, as_kernel(CopySumming<S>{{}, rows.view<const S>(), weight}), {*output_sums_});
    backend_.map(copy, as_kernel(SquaredDeviation<S>{output_sums_->as<double>(), weight, memory_.scalars}),
                 {losses});
  });
  const Total total{losses, 1, to};
  backend_.add_totals({&total, 1});
}

// Of a step: what it selects, in the order of latents.
Code SparseCode::select(const Batch& batch) {
  const std::int64_t rows = batch.rows();
  const Tensor scale = is_rescaled() ? *norms_ : Tensor{};
  Code code{rows, {}, 0, *main_.latents, *main_.values};
  if (is("topk")) {
    code.per_row = static_cast<std::int64_t>(k_);
    const Tensor values = shaped(*main_.values, rows, code.per_row);
    const Tensor latents = shaped(*main_.latents, rows, code.per_row);
    backend_.encode_select({input_, *w_.encoder, *w_.bias, values, latents, scale, true});
    code.values = shaped(values, 1, values.size());
    code.latents = shaped(latents, 1, latents.size());
  } else {
    const auto count =
        std::min(most_selected(rows), static_cast<std::int64_t>(k_ * static_cast<double>(rows)));
    code.starts = shaped(*main_.starts, 1, rows + 1);
    code.values = shaped(*main_.values, 1, count);
    code.latents = shaped(*main_.latents, 1, count);
    backend_.encode_select_batch({input_, *w_.encoder, *w_.bias, scale, count, code.starts, code.latents,
                                  code.values, &sums()->smallest, bar_->as<double>()});
  }
  make_coefficients(code, scale, true);
  return code;
}

void SparseCode::make_coefficients(const Code& code, const Tensor& scale, bool rectified) const {
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    backend_.map(code.values,
                 as_kernel(Coefficient<S>{{}, code.latents.as<std::int32_t>(), scale.as<S>(), rectified}),
                 {});
  });
}

void SparseCode::accumulate_selected(const Batch& batch) {
  const std::int64_t rows = batch.rows();
  const std::int64_t slots = errors_per_row();
  const Code code = select(batch);
  Decoding decoding{};
  decoding.code = code;
  decoding.weight = *w_.decoder;
  decoding.bias = *w_.decoder_bias;
  decoding.extra = skipped_;
  decoding.prefixes = prefixes_;
  decoding.target = batch.target;
  decoding.row_weight = batch.weight;
  decoding.factor = &sums()->factor;
  decoding.errors = errors_->slice_rows(0, rows * slots);
  decoding.slots = slots;
  if (with_gradient_) decoding.slopes = shaped(*main_.slopes, 1, code.values.cols);
  decoding.losses = shaped(*losses_, 1, rows);
  decoding.last_losses = shaped(*last_losses_, 1, rows);
  if (has_auxiliary()) decoding.residual = residual_->slice_rows(0, rows);
  backend_.decode(decoding);
  const Total losses[] = {{decoding.losses, 1, &sums()->loss}, {decoding.last_losses, 1, &sums()->last_loss}};
  backend_.add_totals(losses);
  CodeGradient parts[2] = {{code, decoding.slopes, prefixes_}};
  std::size_t count = 1;
  if (has_auxiliary()) parts[count++] = add_auxiliary(select_dead(rows), slots);
  if (!with_gradient_) return;
  backend_.index_latents({parts, count}, slots, index(), *fired_);
  const Total active{*fired_, 1, &sums()->active};
  backend_.add_totals({&active, 1});
  backend_.measure_latents(latent_rows(), *squares_, *bias_gradient_);
  finish_vectors();
}

Code SparseCode::select_dead(std::int64_t rows) {
  const std::int64_t most = rows * std::min(code_.aux_k, code_.latents);
  const Tensor scale = is_rescaled() ? *norms_ : Tensor{};
  const Code code{rows, shaped(*auxiliary_.starts, 1, rows + 1), 0, shaped(*auxiliary_.latents, 1, most),
                  shaped(*auxiliary_.values, 1, most)};
  backend_.select_dead({input_, *w_.encoder, *w_.bias, scale, *since_, code_.dead_after,
                        std::min(code_.aux_k, code_.latents), code, &sums()->dead});
  make_coefficients(code, scale, code_.aux_relu);
  return code;
}

// The dead latents explain what the others left over.
CodeGradient SparseCode::add_auxiliary(const Code& dead, std::int64_t slots) {
  const Tensor residual = residual_->slice_rows(0, dead.rows);
  add_variance(residual, residual, &sums()->residual_variance);
  scalar_pass(as_kernel(AuxiliaryFactor{{}, sums(), constants(), memory_.scalars}));
  Prefixes whole;
  whole.ends[0] = static_cast<std::int32_t>(code_.latents);
  whole.weights[0] = 1;
  Decoding decoding{};
  decoding.code = dead;
  decoding.weight = *w_.decoder;
  decoding.prefixes = whole;
  decoding.target = residual;
  decoding.row_weight = batch_.weight;
  decoding.factor = &sums()->auxiliary_factor;
  decoding.errors = errors_->slice_rows(0, dead.rows * slots);
  decoding.slots = slots;
  decoding.first_slot = prefixes_.count;
  decoding.slopes = *auxiliary_.slopes;
  decoding.losses = shaped(*losses_, 1, dead.rows);
  backend_.decode(decoding);
  const Total total{decoding.losses, 1, &sums()->auxiliary_loss};
  backend_.add_totals({&total, 1});
  return {dead, decoding.slopes, whole, prefixes_.count, !code_.aux_relu};
}

void SparseCode::finish_vectors() {
  const std::int64_t n = code_.latents, o = spec_.n_outputs, slots = errors_per_row();
  const auto squares = [&](std::int64_t row, std::int64_t cols) {
    return shaped(vector_sums_->slice_rows(row, 1), 1, cols);
  };
  Tensor outputs = errors_->slice_rows(0, batch_.rows());  // the first slot of each row
  outputs.stride = slots * errors_->stride;
  Tensor through;
  if (code_.pre_bias) {
    through = shaped(*through_, 1, spec_.n_features);
    backend_.product({delta_sums()}, {*w_.encoder}, through, false, nullptr, {});
  }
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    if (!dense_) backend_.map(*bias_gradient_, as_kernel(SquareSum<S>{}), {squares(0, n)});
    backend_.map(outputs, as_kernel(ColumnSum<S>{}), {*output_sums_});
    const double* more = gate_sums_ != nullptr && !code_.gate_detached ? gate_sums_->as<double>() : nullptr;
    backend_.map(*decoder_bias_gradient_,
                 as_kernel(DecoderBiasGradient<S>{{}, output_sums_->as<double>(), more, through.as<S>()}),
                 {squares(1, o)});
    if (!code_.skip) return;
    const Tensor& gradient = gradient_of(w_.skip);
    backend_.product({outputs, true}, {batch_.x}, gradient, false, nullptr, {});
    backend_.map(gradient, as_kernel(SquareSum<S>{}), {squares(4, gradient.cols)});
  });
}

LatentRows SparseCode::latent_rows() const {
  LatentRows rows{};
  rows.index = index();
  rows.slots = errors_per_row();
  rows.inputs = input_;
  rows.errors = *errors_;
  if (dense_ && dense_tiles_ > 0) {
    rows.encoder_gradient = *encoder_gradient_;
    rows.decoder_gradient = *decoder_gradient_;
  }
  if (dense_ && pulls()) rows.pull = *pull_;
  rows.encoder = *w_.encoder;
  rows.decoder = *w_.decoder;
  rows.project = code_.decoder_norm == "unit" && code_.project_gradient;
  return rows;
}

// A gradient that is looked at is that of J: no part of it is left out.
void SparseCode::write_matrices() {
  LatentRows rows = latent_rows();
  rows.project = false;
  backend_.measure_latents(rows, *squares_, {});
  backend_.write_latents(rows, *encoder_gradient_, *decoder_gradient_);
}

void SparseCode::close(bool logged) {
  StepTotals* totals = memory_.as_totals();
  backend_.fill(memory_.totals, 0);
  if (with_gradient_) {
    const Total gradients[] = {{*squares_, 1, &totals->squared_gradient},
                               {*vector_sums_, 1, &totals->squared_gradient}};
    backend_.add_totals(gradients);
  }
  scalar_pass(as_kernel(CloseCode{{}, sums(), constants(), memory_.scalars, totals}));
  scalar_pass(as_kernel(CloseStep{totals, memory_.scalars, memory_.cost, logged ? memory_.log : nullptr, 1}));
}

void SparseCode::commit() {
  LatentUpdate update{updates_[0], updates_[1], code_.decoder_norm == "unit", memory_.scalars, memory_.log};
  backend_.update_latents(latent_rows(), update);
  if (w_.threshold != nullptr) {
    with_scalar(spec_.dtype, [&](auto s) {
      backend_.map(*w_.threshold, as_kernel(ClampThreshold<decltype(s)>{{}, memory_.log}), {});
    });
  }
  const double* fired = (dense_ ? forward_sums_ : fired_)->as<double>();
  backend_.map(*since_,
               as_kernel(KeepSince{{}, fired, fired_rows_->as<double>(), batch_.rows(), memory_.log}), {});
  scalar_pass(as_kernel(KeepMonitor{{},
                                    sums(),
                                    constants(),
                                    memory_.scalars,
                                    memory_.log,
                                    static_cast<CodeMonitor*>(monitor_->data),
                                    bar_ == nullptr ? nullptr : bar_->as<double>(),
                                    code_.threshold_decay,
                                    batch_.rows()}));
}

void SparseCode::reset_metrics() {
  backend_.fill(*monitor_, 0);
  backend_.fill(*fired_rows_, 0);
}

std::unique_ptr<Model> make_sparse_code(const ModelSpec& spec, Backend& backend) {
  return std::make_unique<SparseCode>(spec, backend);
}

}  // namespace fastsae
