// A step of ReLU, JumpReLU or Gated codes: a tile of rows x latents at a time, forward and backward while it is there.
#include <algorithm>

#include "models/sparse_code.h"

namespace fastsae {
namespace {

constexpr std::int64_t kTileElements = std::int64_t{1} << 24;
constexpr std::int64_t kFewestRows = 64, kMostRows = 1024;  // of a tile

// Of a vector.
Tensor columns_of(const Tensor& row, std::int64_t first, std::int64_t count) {
  return shaped(shaped(row, row.cols, 1).slice_rows(first, count), 1, count);
}

CodePenalty penalty_of(const std::string& sparsity) {
  return sparsity == "l1" ? CodePenalty::l1 : sparsity == "tanh" ? CodePenalty::tanh : CodePenalty::none;
}

}  // namespace

std::int64_t SparseCode::tile_rows(std::int64_t rows) const {
  return std::min(rows, std::clamp(kTileElements / code_.latents, kFewestRows, kMostRows));
}

void SparseCode::declare_tiles(Arena& scratch, std::int64_t rows) {
  const std::int64_t n = code_.latents, tile = tile_rows(rows);
  const auto make = [&](const char* name) { return &scratch.declare(name, tile, n, spec_.dtype); };
  tile_.z = make("tile_z");
  tile_.code = make("tile_code");
  tile_.delta = make("tile_delta");
  forward_sums_ = &scratch.declare("forward_sums", ForwardSums::count, n, DType::f64);
  backward_sums_ = &scratch.declare("backward_sums", BackwardSums::count, n, DType::f64);
  pull_ = &scratch.declare("pull", 1, n, DType::f64);
  pull_sums_ = &scratch.declare("pull_sums", PenaltyPull::sums, n, DType::f64);
  if (!is("gated")) return;
  tile_.opening = make("tile_opening");
  tile_.opening_slope = make("tile_opening_slope");
  gain_ = &scratch.declare("gain", 1, n, spec_.dtype);
  gate_errors_ = &scratch.declare("gate_errors", tile, spec_.n_outputs, spec_.dtype);
  gate_sums_ = &scratch.declare("gate_sums", 1, spec_.n_outputs, DType::f64);
}

// Whether the penalty is weighed by norms of the decoder's rows, and whether it has a gradient by them.
bool SparseCode::weighs_by_norm() const {
  return code_.sparsity_by_norm && penalty_of(code_.sparsity) != CodePenalty::none;
}
bool SparseCode::pulls() const { return weighs_by_norm() || constants().pre_act_weight > 0; }
bool SparseCode::needs_norms() const { return is_rescaled() || (dense_ && pulls()); }

template <class S>
Thresholded<S> SparseCode::thresholded(const Tensor& weight) const {
  const bool watches = constants().pre_act_weight > 0;
  return {w_.bias->as<S>(),
          w_.threshold == nullptr ? nullptr : w_.threshold->as<S>(),
          pulls() ? norms_->as<S>() : nullptr,
          weight.as<S>(),
          watches ? since_->as<double>() : nullptr,
          code_.dead_after,
          static_cast<S>(code_.tanh_scale),
          penalty_of(code_.sparsity)};
}

template <class S>
GateParameters<S> SparseCode::gate(const Tensor& weight, const Tensor& gain) const {
  return {w_.bias->as<S>(), w_.magnitude_bias->as<S>(), gain.as<S>(),
          weighs_by_norm() ? norms_->as<S>() : nullptr, weight.as<S>()};
}

void SparseCode::accumulate_tiles(const Batch& batch) {
  const std::int64_t rows = batch.rows(), tile = tile_rows(rows);
  if (is("gated")) {
    with_scalar(spec_.dtype, [&](auto s) {
      backend_.map(*gain_, as_kernel(ExpOf<decltype(s)>{{}, w_.log_gain->as<decltype(s)>()}), {});
    });
  }
  for (std::int64_t first = 0; first < rows; first += tile) {
    const std::int64_t count = std::min(tile, rows - first);
    const Rows part{input_.slice_rows(first, count),
                    batch.target.slice_rows(first, count),
                    code_.skip ? skipped_.slice_rows(first, count) : Tensor{},
                    columns_of(batch.weight, first, count),
                    errors_->slice_rows(first, count),
                    losses_->slice_rows(first, count),
                    last_losses_->slice_rows(first, count)};
    with_scalar(spec_.dtype, [&](auto s) {
      if (is("gated"))
        gated_tile<decltype(s)>(part, first > 0);
      else
        thresholded_tile<decltype(s)>(part, first > 0);
    });
  }
  close_tiles(rows);
}

// The error of what a tile's code decodes to, and its loss.
template <class S>
void SparseCode::decode_tile(const Rows& part, const Tensor& code, const Tensor& extra, const double* factor,
                             const Tensor& errors, const Tensor& losses) {
  const Kernel kernel = as_kernel(CodeError<S>{w_.decoder_bias->as<S>(), extra.view<const S>(),
                                               part.target.view<const S>(), part.weight.as<S>(), factor});
  backend_.product({code}, {*w_.decoder}, errors, false, &kernel, {losses});
}

template <class S>
void SparseCode::thresholded_tile(const Rows& part, bool add) {
  const std::int64_t count = part.inputs.rows;
  const Tensor z = tile_.z->slice_rows(0, count), code = tile_.code->slice_rows(0, count),
               delta = tile_.delta->slice_rows(0, count);
  const Thresholded<S> how = thresholded<S>(part.weight);
  const Kernel forward = as_kernel(ForwardCode<S>{{}, how, z.view<S>()});
  backend_.product({part.inputs}, {*w_.encoder, true}, code, false, &forward, {*forward_sums_, add});
  decode_tile<S>(part, code, part.extra, &sums()->factor, part.errors, part.losses);
  if (!with_gradient_) return;
  const double window = is("jump_relu") ? code_.bandwidth / 2 : 0;
  const Kernel backward =
      as_kernel(BackwardCode<S>{{},
                                how,
                                z.view<const S>(),
                                static_cast<S>(window),
                                penalty_of(code_.sparsity) == CodePenalty::none ? 0 : code_.sparsity_weight,
                                constants().pre_act_weight,
                                memory_.scalars});
  backend_.product({part.errors}, {*w_.decoder, true}, delta, false, &backward, {*backward_sums_, add});
  backend_.product({code, true}, {part.errors}, *decoder_gradient_, add, nullptr, {});
  backend_.product({delta, true}, {part.inputs}, *encoder_gradient_, add, nullptr, {});
}

template <class S>
void SparseCode::gated_tile(const Rows& part, bool add) {
  const std::int64_t count = part.inputs.rows;
  const Tensor p = tile_.z->slice_rows(0, count), code = tile_.code->slice_rows(0, count),
               delta = tile_.delta->slice_rows(0, count), opening = tile_.opening->slice_rows(0, count),
               opening_slope = tile_.opening_slope->slice_rows(0, count),
               gate_errors = gate_errors_->slice_rows(0, count);
  const GateParameters<S> how = gate<S>(part.weight, *gain_);
  const Kernel forward = as_kernel(ForwardGate<S>{{}, how, code.view<S>(), opening.view<S>()});
  backend_.product({part.inputs}, {*w_.encoder, true}, p, false, &forward, {*forward_sums_, add});
  decode_tile<S>(part, code, part.extra, &sums()->factor, part.errors, part.losses);
  decode_tile<S>(part, opening, {}, &sums()->gate_factor, gate_errors, part.gate_losses);
  if (!with_gradient_) return;
  backend_.product({gate_errors}, {*w_.decoder, true}, opening_slope, false, nullptr, {});
  const Kernel backward =
      as_kernel(BackwardGate<S>{{},
                                how,
                                p.view<const S>(),
                                opening_slope.view<const S>(),
                                penalty_of(code_.sparsity) == CodePenalty::none ? 0 : code_.sparsity_weight,
                                memory_.scalars});
  backend_.product({part.errors}, {*w_.decoder, true}, delta, false, &backward, {*backward_sums_, add});
  backend_.product({code, true}, {part.errors}, *decoder_gradient_, add, nullptr, {});
  backend_.product({delta, true}, {part.inputs}, *encoder_gradient_, add, nullptr, {});
  if (code_.gate_detached) return;
  backend_.product({opening, true}, {gate_errors}, *decoder_gradient_, true, nullptr, {});
  backend_.map(gate_errors, as_kernel(ColumnSum<S>{}), {*gate_sums_, add});
}

// Sums over all rows become the parts of J and the gradients of vectors.
void SparseCode::close_tiles(std::int64_t rows) {
  PenaltyPull pull{
      {}, forward_sums_->as<double>(), code_.latents, {}, {}, constants(), memory_.scalars, weighs_by_norm()};
  if (pulls() && spec_.dtype == DType::f32) pull.norms_f32 = norms_->view<const float>();
  if (pulls() && spec_.dtype == DType::f64) pull.norms_f64 = norms_->view<const double>();
  backend_.map(*pull_, as_kernel(pull), {*pull_sums_});
  CodeSums* s = sums();
  const Tensor losses = losses_->slice_rows(0, rows), gate_losses = last_losses_->slice_rows(0, rows);
  const Total totals[] = {{pull_sums_->slice_rows(PenaltyPull::active, 1), 1, &s->active},
                          {pull_sums_->slice_rows(PenaltyPull::weighted, 1), 1, &s->weighted_active},
                          {pull_sums_->slice_rows(PenaltyPull::penalty, 1), 1, &s->sparsity},
                          {pull_sums_->slice_rows(PenaltyPull::below, 1), 1, &s->pre_act},
                          {losses, 1, &s->loss},
                          {losses, 1, &s->last_loss},
                          {gate_losses, 1, &s->gate_loss}};
  backend_.add_totals({totals, is("gated") ? std::size(totals) : std::size(totals) - 1});
  if (!with_gradient_) return;
  backend_.measure_latents(latent_rows(), *squares_, {});
  const auto squares = [&](std::int64_t row) {
    return shaped(vector_sums_->slice_rows(row, 1), 1, code_.latents);
  };
  const auto sums_at = [&](int row) { return backward_sums_->slice_rows(row, 1).as<double>(); };
  with_scalar(spec_.dtype, [&](auto scalar) {
    using S = decltype(scalar);
    const auto from_sums = [&](const Tensor& gradient, int row, std::int64_t squares_row) {
      backend_.map(gradient, as_kernel(BiasGradient<S>{sums_at(row)}), {squares(squares_row)});
    };
    if (is("gated")) {
      from_sums(*bias_gradient_, GateSums::gate, 0);
      from_sums(gradient_of(w_.magnitude_bias), GateSums::magnitude, 2);
      from_sums(gradient_of(w_.log_gain), GateSums::gain, 3);
      // No parameter's gradient: its squares count nowhere.
      backend_.map(delta_sums(), as_kernel(BiasGradient<S>{sums_at(GateSums::delta)}),
                   {pull_sums_->slice_rows(0, 1)});
      return;
    }
    from_sums(*bias_gradient_, BackwardSums::delta, 0);
    if (w_.threshold == nullptr) return;
    backend_.map(gradient_of(w_.threshold),
                 as_kernel(ThresholdGradient<S>{{},
                                                backward_sums_->as<double>(),
                                                code_.latents,
                                                w_.threshold->as<S>(),
                                                pulls() ? norms_->as<S>() : nullptr,
                                                s,
                                                constants(),
                                                memory_.scalars,
                                                code_.bandwidth}),
                 {squares(2)});
  });
  finish_vectors();
}

}  // namespace fastsae
