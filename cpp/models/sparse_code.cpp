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

CodeConstants SparseCode::constants() const {
  const double outputs = static_cast<double>(spec_.n_outputs);
  const auto divisor = [&](const std::string& name) {
    return name == "sum"        ? 1.0
           : name == "ufldl"    ? 2.0
           : name == "mean"     ? outputs
           : name == "residual" ? -1.0
                                : 0.0;
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
  const auto done = [step](std::int64_t length) {
    return length > 0 ? std::min(1.0, static_cast<double>(step - 1) / static_cast<double>(length)) : 1.0;
  };
  scalars.penalty_share = done(code_.sparsity_warm_up);
  k_ = code_.k + (code_.k_start - code_.k) * (1 - done(code_.k_warm_up));
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
  scalar_pass(as_kernel(CodeFactors{{},
                                    sums(),
                                    constants(),
                                    memory_.scalars,
                                    data_variance_ == nullptr ? nullptr : data_variance_->as<double>()}));
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

// All latents at once.
Prefixes SparseCode::whole() const {
  Prefixes all;
  all.ends[0] = static_cast<std::int32_t>(code_.latents);
  all.weights[0] = 1;
  return all;
}

Decoding SparseCode::decoding_of(const Code& code, const Tensor& extra, const Prefixes& prefixes) const {
  Decoding decoding{};
  decoding.code = code;
  decoding.weight = *w_.decoder;
  decoding.bias = *w_.decoder_bias;
  decoding.extra = extra;
  decoding.prefixes = prefixes;
  return decoding;
}

void SparseCode::accumulate_selected(const Batch& batch) {
  const std::int64_t rows = batch.rows();
  const std::int64_t slots = errors_per_row();
  const Code code = select(batch);
  Decoding decoding = decoding_of(code, skipped_, prefixes_);
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
  backend_.measure_latents(latent_rows(projects()), *squares_, *bias_gradient_);
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
  Decoding decoding = decoding_of(dead, {}, whole());
  decoding.bias = {};
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
  return {dead, decoding.slopes, whole(), prefixes_.count, !code_.aux_relu};
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

LatentRows SparseCode::latent_rows(bool project) const {
  LatentRows rows{};
  rows.index = index();
  rows.slots = errors_per_row();
  rows.inputs = input_;
  rows.errors = *errors_;
  if (dense_) {
    rows.encoder_gradient = *encoder_gradient_;
    rows.decoder_gradient = *decoder_gradient_;
    if (collects()) rows.matrices = &sums()->dense_tiles;
  }
  // A pull along a row is all that a projection leaves out: nothing of it must come back by rounding.
  if (dense_ && pulls() && !project) rows.pull = *pull_;
  rows.encoder = *w_.encoder;
  rows.decoder = *w_.decoder;
  rows.project = project;
  return rows;
}

// A gradient that is looked at is that of J: no part of it is left out.
void SparseCode::write_matrices() {
  const LatentRows rows = latent_rows(false);
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
  backend_.update_latents(latent_rows(projects()), update);
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
