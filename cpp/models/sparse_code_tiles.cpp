// A step of ReLU, JumpReLU or Gated codes: a tile of rows x latents at a time, forward and backward while it is there.
#include <algorithm>
#include <functional>

#include "models/sparse_code.h"

namespace fastsae {
namespace {

constexpr std::int64_t kTileElements = std::int64_t{1} << 24;
constexpr std::int64_t kFewestRows = 64, kMostRows = 1024;  // of a tile
// A tile is collected if a row has one in so many latents above the threshold, on average, and near it.
constexpr std::int64_t kAboveShare = 64, kNearShare = 16;

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
  if (!is("gated")) return declare_collected(scratch, rows);
  tile_.opening = make("tile_opening");
  tile_.opening_slope = make("tile_opening_slope");
  gain_ = &scratch.declare("gain", 1, n, spec_.dtype);
  gate_errors_ = &scratch.declare("gate_errors", tile, spec_.n_outputs, spec_.dtype, shadows);
  gate_sums_ = &scratch.declare("gate_sums", 1, spec_.n_outputs, DType::f64);
}

void SparseCode::declare_collected(Arena& scratch, std::int64_t rows) {
  const std::int64_t n = code_.latents;
  near_sums_ = &scratch.declare("near_sums", 1, n, DType::f64);
  element_sums_ = &scratch.declare("element_sums", 1, n, spec_.dtype);
  if (!collects()) return;
  declare_selected(scratch, main_, "above", rows, rows * (n / kAboveShare));
  if (is("jump_relu")) declare_selected(scratch, near_, "near", rows, rows * (n / kNearShare));
  declare_index(scratch, rows * (n / kAboveShare));
}

// Whether a tile with few elements goes on as a list of them. The penalty on dead latents looks at all of theirs.
bool SparseCode::collects() const {
  return !is("gated") && code_.latents >= kAboveShare && constants().pre_act_weight == 0 &&
         backend_.chooses();
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
          weighs_by_norm() ? norms_->as<S>() : nullptr,
          weight.as<S>(),
          norms_->as<S>(),
          watches ? since_->as<double>() : nullptr,
          code_.dead_after,
          static_cast<S>(is("jump_relu") ? code_.bandwidth / 2 : 0),
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
  if (with_gradient_) backend_.fill(*backward_sums_, 0);
  for (std::int64_t first = 0; first < rows; first += tile) {
    const std::int64_t count = std::min(tile, rows - first);
    const Rows part{input_.slice_rows(first, count),
                    batch.target.slice_rows(first, count),
                    code_.skip ? skipped_.slice_rows(first, count) : Tensor{},
                    columns_of(batch.weight, first, count),
                    errors_->slice_rows(first, count),
                    losses_->slice_rows(first, count),
                    last_losses_->slice_rows(first, count),
                    first};
    with_scalar(spec_.dtype, [&](auto s) {
      if (is("gated"))
        gated_tile<decltype(s)>(part);
      else
        thresholded_tile<decltype(s)>(part);
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
void SparseCode::thresholded_tile(const Rows& part) {
  const std::int64_t count = part.inputs.rows;
  const Tensor z = tile_.z->slice_rows(0, count), code = tile_.code->slice_rows(0, count);
  const Thresholded<S> how = thresholded<S>(part.weight);
  const Kernel forward = as_kernel(ForwardCode<S>{{}, how, z.view<S>()});
  backend_.product({part.inputs}, {*w_.encoder, true}, code, false, &forward,
                   {*forward_sums_, part.first > 0});
  const auto as_list = [&] { decode_collected(part); };
  const auto as_it_is = [&] { multiply_tile<S>(part); };
  if (!collects()) return as_it_is();
  collect_tile(part, z);
  backend_.either(&sums()->listed, std::ref(as_list), std::ref(as_it_is));
}

// Goes on with a tile as it is written down.
template <class S>
void SparseCode::multiply_tile(const Rows& part) {
  const std::int64_t count = part.inputs.rows;
  const Tensor z = tile_.z->slice_rows(0, count), code = tile_.code->slice_rows(0, count),
               delta = tile_.delta->slice_rows(0, count);
  decode_tile<S>(part, code, part.extra, &sums()->factor, part.errors, part.losses);
  if (!with_gradient_) return;
  const Kernel backward = as_kernel(BackwardCode<S>{{},
                                                    thresholded<S>(part.weight),
                                                    z.view<const S>(),
                                                    penalty_weight(),
                                                    constants().pre_act_weight,
                                                    memory_.scalars});
  backend_.product({part.errors}, {*w_.decoder, true}, delta, false, &backward, {*backward_sums_, true});
  if (!collects()) return add_gradients(part, code, delta, part.first > 0);
  const auto more = [&] { add_gradients(part, code, delta, true); };
  const auto first = [&] { add_gradients(part, code, delta, false); };
  if (part.first == 0)
    first();
  else
    backend_.either(&sums()->dense_tiles, std::ref(more), std::ref(first));
  scalar_pass(as_kernel(CountTile{{}, sums()}));
}

void SparseCode::add_gradients(const Rows& part, const Tensor& code, const Tensor& delta, bool add) {
  backend_.product({code, true}, {part.errors}, *decoder_gradient_, add, nullptr, {});
  backend_.product({delta, true}, {part.inputs}, *encoder_gradient_, add, nullptr, {});
}

double SparseCode::penalty_weight() const {
  return penalty_of(code_.sparsity) == CodePenalty::none ? 0 : code_.sparsity_weight;
}

Code SparseCode::collected(const Selected& elements, std::int64_t rows) const {
  return {rows, shaped(*elements.starts, 1, rows + 1), 0, *elements.latents, *elements.values};
}

// Elements of a tile that has few become a list.
void SparseCode::collect_tile(const Rows& part, const Tensor& z) {
  const std::int64_t rows = batch_.rows(), count = z.rows, n = code_.latents;
  const bool windowed = is("jump_relu");
  const Code above = collected(main_, rows), near = windowed ? collected(near_, rows) : Code{};
  backend_.collect({z, w_.threshold == nullptr ? Tensor{} : *w_.threshold, windowed ? code_.bandwidth / 2 : 0,
                    part.first, above, near, count * (n / kAboveShare), count * (n / kNearShare),
                    &sums()->listed});
}

// Goes on with that: what it decodes to, and the slopes of its elements.
void SparseCode::decode_collected(const Rows& part) {
  const std::int64_t rows = batch_.rows(), count = part.inputs.rows;
  const bool windowed = is("jump_relu");
  const Code above = collected(main_, rows), near = windowed ? collected(near_, rows) : Code{};
  const auto of_tile = [&](Code code) {
    code.rows = count;
    code.starts = columns_of(code.starts, part.first, count + 1);
    return code;
  };
  Decoding decoding = decoding_of(of_tile(above), part.extra, prefixes_);
  decoding.target = part.target;
  decoding.row_weight = part.weight;
  decoding.factor = &sums()->factor;
  decoding.errors = part.errors;
  decoding.losses = shaped(part.losses, 1, count);
  if (with_gradient_) decoding.slopes = *main_.slopes;
  if (with_gradient_ && windowed) {
    decoding.more = of_tile(near);
    decoding.more_slopes = *near_.slopes;
  }
  backend_.decode(decoding);
}

// What the elements that were collected add to the gradient.
template <class S>
void SparseCode::add_collected(std::int64_t rows) {
  backend_.fill(*near_sums_, 0);
  backend_.fill(*element_sums_, 0);
  if (!collects()) return;
  const auto finish = [&](const Selected& elements) {
    if (penalty_weight() == 0) return;
    const Kernel kernel = as_kernel(ElementSlope<S>{{},
                                                    thresholded<S>(batch_.weight),
                                                    elements.starts->as<std::int32_t>(),
                                                    elements.latents->as<std::int32_t>(),
                                                    elements.values->as<S>(),
                                                    rows,
                                                    penalty_weight(),
                                                    memory_.scalars});
    backend_.map(*elements.slopes, kernel, {});
  };
  finish(main_);
  const CodeGradient part{collected(main_, rows), *main_.slopes, prefixes_};
  backend_.index_latents({&part, 1}, 1, index(), *fired_);
  if (!is("jump_relu")) return;
  finish(near_);
  Code near = collected(near_, rows);
  near.values = *near_.slopes;
  backend_.sum_by_latent(near, *near_sums_);
}

template <class S>
void SparseCode::gated_tile(const Rows& part) {
  const std::int64_t count = part.inputs.rows;
  const Tensor p = tile_.z->slice_rows(0, count), code = tile_.code->slice_rows(0, count),
               delta = tile_.delta->slice_rows(0, count), opening = tile_.opening->slice_rows(0, count),
               opening_slope = tile_.opening_slope->slice_rows(0, count),
               gate_errors = gate_errors_->slice_rows(0, count);
  const GateParameters<S> how = gate<S>(part.weight, *gain_);
  const Kernel forward = as_kernel(ForwardGate<S>{{}, how, code.view<S>(), opening.view<S>()});
  backend_.product({part.inputs}, {*w_.encoder, true}, p, false, &forward, {*forward_sums_, part.first > 0});
  decode_tile<S>(part, code, part.extra, &sums()->factor, part.errors, part.losses);
  decode_tile<S>(part, opening, {}, &sums()->gate_factor, gate_errors, part.gate_losses);
  if (!with_gradient_) return;
  const bool add = part.first > 0;
  backend_.product({gate_errors}, {*w_.decoder, true}, opening_slope, false, nullptr, {});
  const Kernel backward = as_kernel(BackwardGate<S>{
      {}, how, p.view<const S>(), opening_slope.view<const S>(), penalty_weight(), memory_.scalars});
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
  with_scalar(spec_.dtype, [&](auto scalar) {
    if (!is("gated")) add_collected<decltype(scalar)>(rows);
  });
  backend_.measure_latents(latent_rows(projects()), *squares_, collects() ? *element_sums_ : Tensor{});
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
    const Kernel bias =
        as_kernel(CodeBiasGradient<S>{{}, sums_at(BackwardSums::delta), element_sums_->as<S>()});
    backend_.map(*bias_gradient_, bias, {squares(0)});
    if (w_.threshold == nullptr) return;
    backend_.map(gradient_of(w_.threshold),
                 as_kernel(ThresholdGradient<S>{{},
                                                forward_sums_->as<double>(),
                                                backward_sums_->as<double>(),
                                                near_sums_->as<double>(),
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
