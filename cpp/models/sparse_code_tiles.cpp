// A step of ReLU, JumpReLU or Gated codes: a tile of rows x latents at a time, forward and backward while it is there.
#include <algorithm>
#include <functional>

#include "models/sparse_code.h"

namespace fastsae {
namespace {

constexpr std::int64_t kTileElements = std::int64_t{1} << 24;
constexpr std::int64_t kFewestRows = 64, kMostRows = 1024;  // of a tile

CodePenalty penalty_of(const std::string& sparsity) {
  return sparsity == "l1" ? CodePenalty::l1 : sparsity == "tanh" ? CodePenalty::tanh : CodePenalty::none;
}

}  // namespace

std::int64_t SparseCode::tile_rows(std::int64_t rows) const {
  return std::min(rows, std::clamp(kTileElements / code_.latents, kFewestRows, kMostRows));
}

void SparseCode::declare_tiles(Arena& scratch, std::int64_t rows) {
  const std::int64_t n = code_.latents, tile = tile_rows(rows);
  // A gate writes its code beside what it is the kernel of, and no shadow.
  const bool shadows = backend_.wants_shadows();
  const auto make = [&](const char* name, bool shadowed = false) {
    return &scratch.declare(name, tile, n, spec_.dtype, shadowed);
  };
  tile_.z = make("tile_z");
  tile_.code = make("tile_code", shadows && !is("gated"));
  tile_.delta = make("tile_delta", shadows);
  forward_sums_ = &scratch.declare("forward_sums", ForwardSums::count, n, DType::f64);
  backward_sums_ =
      &scratch.declare("backward_sums", std::max(BackwardSums::count, GateSums::count), n, DType::f64);
  pull_ = &scratch.declare("pull", 1, n, DType::f64);
  pull_sums_ = &scratch.declare("pull_sums", PenaltyPull::sums, n, DType::f64);
  if (counts_rows()) {
    row_counts_ = &scratch.declare("row_counts", tile, 1, DType::f64);
    row_slopes_ = &scratch.declare("row_slopes", rows, 1, spec_.dtype);
    row_penalty_ = &scratch.declare("row_penalty", 1, 1, DType::f64);
  }
  declare_lists(scratch, rows);
  if (!is("gated")) return;
  tile_.opening = make("tile_opening");
  tile_.opening_slope = make("tile_opening_slope");
  gain_ = &scratch.declare("gain", 1, n, spec_.dtype);
  gate_sums_ = &scratch.declare("gate_sums", 1, spec_.n_outputs, DType::f64);
}

// Whether the penalty is weighed by norms of the decoder's rows, and whether it has a gradient by them.
bool SparseCode::weighs_by_norm() const {
  return code_.sparsity_by_norm && penalty_of(code_.sparsity) != CodePenalty::none;
}
bool SparseCode::pulls() const { return weighs_by_norm() || constants().pre_act_weight > 0; }
bool SparseCode::needs_norms() const { return is_rescaled() || (dense_ && pulls()); }

template <class S>
Thresholded<S> SparseCode::thresholded(const Tensor& weight, std::int64_t first) const {
  const bool watches = constants().pre_act_weight > 0;
  return {collects() ? nullptr : w_.bias->as<S>(),
          w_.threshold == nullptr ? nullptr : w_.threshold->as<S>(),
          weighs_by_norm() ? norms_->as<S>() : nullptr,
          weight.as<S>(),
          norms_->as<S>(),
          watches ? since_->as<double>() : nullptr,
          code_.dead_after,
          static_cast<S>(is("jump_relu") ? code_.bandwidth / 2 : 0),
          static_cast<S>(code_.tanh_scale),
          penalty_of(code_.sparsity),
          counts_rows() ? row_slopes_->slice_rows(first, 1).as<S>() : nullptr};
}

template <class S>
GateParameters<S> SparseCode::gate(const Tensor& weight, const Tensor& gain) const {
  return {w_.bias->as<S>(), w_.magnitude_bias->as<S>(), gain.as<S>(),
          weighs_by_norm() ? norms_->as<S>() : nullptr, weight.as<S>()};
}

// One of the gradients that a row's errors become, of some rows.
Tensor SparseCode::errors_of(std::int64_t slot, std::int64_t first, std::int64_t count) const {
  const std::int64_t slots = errors_per_row();
  Tensor errors = errors_->slice_rows(first * slots + slot, count);
  errors.stride = slots * errors_->stride;
  return errors;
}

void SparseCode::accumulate_tiles(const Batch& batch) {
  const std::int64_t rows = batch.rows(), tile = tile_rows(rows);
  tiles_.clear();
  backend_.fill(*forward_sums_, 0);
  if (counts_rows()) backend_.fill(*row_penalty_, 0);
  if (with_gradient_) backend_.fill(*backward_sums_, 0);
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    if (is("gated")) backend_.map(*gain_, as_kernel(ExpOf<S>{{}, w_.log_gain->as<S>()}), {});
    if (gate_bars_ != nullptr) backend_.map(*gate_bars_, as_kernel(NegativeOf<S>{{}, w_.bias->as<S>()}), {});
    for (std::int64_t first = 0; first < rows; first += tile) {
      const std::int64_t count = std::min(tile, rows - first);
      const Rows part{input_.slice_rows(first, count),
                      batch.target.slice_rows(first, count),
                      code_.skip ? skipped_.slice_rows(first, count) : Tensor{},
                      columns_of(batch.weight, first, count),
                      errors_of(0, first, count),
                      losses_->slice_rows(first, count),
                      last_losses_->slice_rows(first, count),
                      first};
      if (is("gated"))
        gated_tile<S>(part);
      else
        thresholded_tile<S>(part);
    }
  });
  add_lists();
  close_tiles(rows);
}

// A tile's product. One with few elements becomes a list; `forward` takes another, and `rest` goes on with it.
void SparseCode::take_tile(const Rows& part, const Tensor& product, const Kernel* begin,
                           const Kernel& forward, const std::function<void()>& rest) {
  const Factor weight{*w_.encoder, true};
  if (!collects()) {
    backend_.product({part.inputs}, weight, product, false, &forward, {*forward_sums_, true});
    return rest();
  }
  backend_.product({part.inputs}, weight, product, false, begin, {});
  collect_tile(part, product);
  const auto as_it_is = [&] {
    backend_.map(product, forward, {*forward_sums_, true});
    rest();
  };
  backend_.either(listed(part), [] {}, std::ref(as_it_is));
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
void SparseCode::thresholded_tile(const Rows& part) {
  const std::int64_t count = part.inputs.rows;
  const Tensor z = tile_.z->slice_rows(0, count), code = tile_.code->slice_rows(0, count),
               delta = tile_.delta->slice_rows(0, count);
  const Thresholded<S> how = thresholded<S>(part.weight, part.first);
  const Kernel add_bias = as_kernel(AddExtra<S>{{}, w_.bias->as<S>(), {}});
  const Kernel forward = as_kernel(ForwardCode<S>{{}, how, z.view<S>()});
  const auto rest = [&] {
    if (counts_rows()) count_rows<S>(part, code);
    decode_tile<S>(part, code, part.extra, &sums()->factor, part.errors, part.losses);
    if (!with_gradient_) return;
    const Kernel backward = as_kernel(BackwardCode<S>{{}, how, z.view<const S>(), penalty_slopes<S>()});
    backend_.product({part.errors}, {*w_.decoder, true}, delta, false, &backward, {*backward_sums_, true});
    add_gradients(part, code, delta);
  };
  take_tile(part, code, &add_bias, forward, std::ref(rest));
}

// What a tile that was multiplied adds to the gradients of the matrices; the first one of a step begins them.
void SparseCode::add_gradients(const Rows& part, const Tensor& code, const Tensor& delta) {
  const auto products = [&](bool add) {
    backend_.product({code, true}, {part.errors}, *decoder_gradient_, add, nullptr, {});
    backend_.product({delta, true}, {part.inputs}, *encoder_gradient_, add, nullptr, {});
  };
  if (!collects() || part.first == 0) {
    products(part.first > 0);
  } else {
    const auto more = [&] { products(true); };
    const auto first = [&] { products(false); };
    backend_.either(&sums()->dense_tiles, std::ref(more), std::ref(first));
  }
  if (collects()) scalar_pass(as_kernel(CountTile{{}, sums()}));
}

// What each row of a tile pays for the number of its latents, and the slope of that by the number: `code` is the tile, or
// none of one that is a list.
template <class S>
void SparseCode::count_rows(const Rows& part, const Tensor& code) {
  const std::int64_t rows = part.inputs.rows;
  const Tensor counts = row_counts_->slice_rows(0, rows);
  if (code.exists()) backend_.map(code, as_kernel(ActiveCount<S>{}), {counts});
  const std::int32_t* starts = code.exists() ? nullptr : main_.starts->as<std::int32_t>() + part.first;
  const Kernel kernel = as_kernel(CountSlope<S>{
      {}, code.exists() ? counts.as<double>() : nullptr, starts, part.weight.as<S>(), code_.target_l0});
  backend_.map(row_slopes_->slice_rows(part.first, rows), kernel, {*row_penalty_, true});
}

template <class S>
PenaltySlopes<S> SparseCode::penalty_slopes() const {
  const double weight = penalty_of(code_.sparsity) == CodePenalty::none ? 0 : code_.sparsity_weight;
  return {weight, constants().pre_act_weight, memory_.scalars};
}

// What sparse_code_lists.cpp takes of these.
template Thresholded<float> SparseCode::thresholded<float>(const Tensor&, std::int64_t) const;
template GateParameters<float> SparseCode::gate<float>(const Tensor&, const Tensor&) const;
template PenaltySlopes<float> SparseCode::penalty_slopes<float>() const;
template void SparseCode::count_rows<float>(const Rows&, const Tensor&);
template Thresholded<double> SparseCode::thresholded<double>(const Tensor&, std::int64_t) const;
template GateParameters<double> SparseCode::gate<double>(const Tensor&, const Tensor&) const;
template PenaltySlopes<double> SparseCode::penalty_slopes<double>() const;
template void SparseCode::count_rows<double>(const Rows&, const Tensor&);

template <class S>
void SparseCode::gated_tile(const Rows& part) {
  const std::int64_t count = part.inputs.rows;
  const Tensor p = tile_.z->slice_rows(0, count), code = tile_.code->slice_rows(0, count),
               delta = tile_.delta->slice_rows(0, count), opening = tile_.opening->slice_rows(0, count),
               opening_slope = tile_.opening_slope->slice_rows(0, count),
               gate_errors = errors_of(1, part.first, count);
  const GateParameters<S> how = gate<S>(part.weight, *gain_);
  const Kernel forward = as_kernel(ForwardGate<S>{{}, how, code.view<S>(), opening.view<S>()});
  const auto rest = [&] {
    decode_tile<S>(part, code, part.extra, &sums()->factor, part.errors, part.losses);
    decode_tile<S>(part, opening, {}, &sums()->gate_factor, gate_errors, part.gate_losses);
    if (!with_gradient_) return;
    backend_.product({gate_errors}, {*w_.decoder, true}, opening_slope, false, nullptr, {});
    const Kernel backward = as_kernel(
        BackwardGate<S>{{}, how, p.view<const S>(), opening_slope.view<const S>(), penalty_slopes<S>()});
    backend_.product({part.errors}, {*w_.decoder, true}, delta, false, &backward, {*backward_sums_, true});
    add_gradients(part, code, delta);
    if (code_.gate_detached) return;
    backend_.product({opening, true}, {gate_errors}, *decoder_gradient_, true, nullptr, {});
  };
  take_tile(part, p, nullptr, forward, std::ref(rest));
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
  const Tensor penalty = counts_rows() ? *row_penalty_ : pull_sums_->slice_rows(PenaltyPull::penalty, 1);
  const Total totals[] = {{pull_sums_->slice_rows(PenaltyPull::active, 1), 1, &s->active},
                          {pull_sums_->slice_rows(PenaltyPull::weighted, 1), 1, &s->weighted_active},
                          {penalty, 1, &s->sparsity},
                          {pull_sums_->slice_rows(PenaltyPull::below, 1), 1, &s->pre_act},
                          {losses, 1, &s->loss},
                          {losses, 1, &s->last_loss},
                          {gate_losses, 1, &s->gate_loss}};
  backend_.add_totals({totals, is("gated") ? std::size(totals) : std::size(totals) - 1});
  if (!with_gradient_) return;
  backend_.measure_latents(latent_rows(projects()), *squares_, {});
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
      if (!code_.gate_detached) backend_.map(errors_of(1, 0, rows), as_kernel(ColumnSum<S>{}), {*gate_sums_});
      return;
    }
    from_sums(*bias_gradient_, BackwardSums::delta, 0);
    if (w_.threshold == nullptr) return;
    backend_.map(gradient_of(w_.threshold),
                 as_kernel(ThresholdGradient<S>{{},
                                                forward_sums_->as<double>(),
                                                backward_sums_->as<double>(),
                                                code_.latents,
                                                w_.threshold->as<S>(),
                                                pulls() ? norms_->as<S>() : nullptr,
                                                s,
                                                constants(),
                                                memory_.scalars,
                                                code_.bandwidth,
                                                counts_rows()}),
                 {squares(2)});
  });
  finish_vectors();
}

}  // namespace fastsae
