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
constexpr int kElementSums = 4;  // at most, of a pass over a list
static_assert(ForwardSums::below == kElementSums && GateSums::count == kElementSums);

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
  declare_lists(scratch, rows);
  if (!is("gated")) return;
  tile_.opening = make("tile_opening");
  tile_.opening_slope = make("tile_opening_slope");
  gain_ = &scratch.declare("gain", 1, n, spec_.dtype);
  gate_sums_ = &scratch.declare("gate_sums", 1, spec_.n_outputs, DType::f64);
}

void SparseCode::declare_lists(Arena& scratch, std::int64_t rows) {
  if (!collects()) return;
  const std::int64_t n = code_.latents, above = rows * (n / kAboveShare), near = rows * (n / kNearShare);
  const auto make = [&](const char* name, std::int64_t cols) {
    return &scratch.declare(name, 1, cols, spec_.dtype);
  };
  const std::int64_t tiles = rows / tile_rows(rows) + 1;
  tiles_.reserve(static_cast<std::size_t>(tiles));
  listed_ = &scratch.declare("listed", 1, tiles, DType::f64);
  element_sums_ = make("element_sums", std::max(kElementSums * above, near));
  declare_selected(scratch, main_, "above", rows, above);
  if (is("jump_relu")) declare_selected(scratch, near_, "near", rows, near);
  declare_index(scratch, is("gated") && !code_.gate_detached ? 2 * above : above);
  if (!is("gated")) return;
  gate_bars_ = make("gate_bars", n);
  passing_ = make("passing", above);
  opening_ = {main_.starts, main_.latents, make("opening", above), make("opening_slopes", above)};
}

// Whether a tile with few elements goes on as a list of them. The penalty on dead latents looks at all of theirs.
bool SparseCode::collects() const {
  return code_.latents >= kAboveShare && constants().pre_act_weight == 0 && backend_.chooses();
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
  return {collects() ? nullptr : w_.bias->as<S>(),
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
      if (collects()) tiles_.push_back(part);
      if (is("gated"))
        gated_tile<S>(part);
      else
        thresholded_tile<S>(part);
    }
    if (!collects()) return;
    if (is("gated"))
      add_gated_lists<S>();
    else
      add_thresholded_lists<S>();
  });
  close_tiles(rows);
}

// A tile's product. One with few elements becomes a list; `forward` takes another, and `then` goes on with it.
void SparseCode::multiply_or_collect(const Rows& part, const Tensor& product, const Kernel* begin,
                                     const Kernel& forward, const std::function<void()>& then) {
  const Factor weight{*w_.encoder, true};
  if (!collects()) {
    backend_.product({part.inputs}, weight, product, false, &forward, {*forward_sums_, true});
    return then();
  }
  backend_.product({part.inputs}, weight, product, false, begin, {});
  collect_tile(part, product);
  const auto later = [] {};
  const auto now = [&] {
    backend_.map(product, forward, {*forward_sums_, true});
    then();
  };
  backend_.either(listed(part), std::ref(later), std::ref(now));
}

double* SparseCode::listed(const Rows& part) const {
  return listed_->as<double>() + part.first / tile_rows(batch_.rows());
}

void SparseCode::add_gradients(const Rows& part, const Tensor& code, const Tensor& delta) {
  const auto add = [&](bool more) {
    backend_.product({code, true}, {part.errors}, *decoder_gradient_, more, nullptr, {});
    backend_.product({delta, true}, {part.inputs}, *encoder_gradient_, more, nullptr, {});
  };
  if (!collects()) return add(part.first > 0);
  const auto more = [&] { add(true); };
  const auto first = [&] { add(false); };
  if (part.first == 0)
    first();
  else
    backend_.either(&sums()->dense_tiles, std::ref(more), std::ref(first));
  scalar_pass(as_kernel(CountTile{{}, sums()}));
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
  const Thresholded<S> how = thresholded<S>(part.weight);
  const Kernel add_bias = as_kernel(AddExtra<S>{{}, w_.bias->as<S>(), {}});
  const Kernel forward = as_kernel(ForwardCode<S>{{}, how, z.view<S>()});
  const auto then = [&] {
    decode_tile<S>(part, code, part.extra, &sums()->factor, part.errors, part.losses);
    if (!with_gradient_) return;
    const Kernel backward = as_kernel(BackwardCode<S>{{}, how, z.view<const S>(), penalty_slopes<S>()});
    backend_.product({part.errors}, {*w_.decoder, true}, delta, false, &backward, {*backward_sums_, true});
    add_gradients(part, code, delta);
  };
  multiply_or_collect(part, code, &add_bias, forward, std::ref(then));
}

template <class S>
PenaltySlopes<S> SparseCode::penalty_slopes() const {
  const double weight = penalty_of(code_.sparsity) == CodePenalty::none ? 0 : code_.sparsity_weight;
  return {weight, constants().pre_act_weight, memory_.scalars};
}

template <class S>
void SparseCode::gated_tile(const Rows& part) {
  const std::int64_t count = part.inputs.rows;
  const Tensor p = tile_.z->slice_rows(0, count), code = tile_.code->slice_rows(0, count),
               delta = tile_.delta->slice_rows(0, count), opening = tile_.opening->slice_rows(0, count),
               opening_slope = tile_.opening_slope->slice_rows(0, count),
               gate_errors = errors_of(1, part.first, count);
  const GateParameters<S> how = gate<S>(part.weight, *gain_);
  const Kernel forward = as_kernel(ForwardGate<S>{{}, how, code.view<S>(), opening.view<S>()});
  const auto then = [&] {
    decode_tile<S>(part, code, part.extra, &sums()->factor, part.errors, part.losses);
    decode_tile<S>(part, opening, {}, &sums()->gate_factor, gate_errors, part.gate_losses);
    if (!with_gradient_) return;
    backend_.product({gate_errors}, {*w_.decoder, true}, opening_slope, false, nullptr, {});
    const Kernel backward = as_kernel(
        BackwardGate<S>{{}, how, p.view<const S>(), opening_slope.view<const S>(), penalty_slopes<S>()});
    backend_.product({part.errors}, {*w_.decoder, true}, delta, false, &backward, {*backward_sums_, true});
    add_gradients(part, code, delta);
    if (!code_.gate_detached)
      backend_.product({opening, true}, {gate_errors}, *decoder_gradient_, true, nullptr, {});
  };
  multiply_or_collect(part, p, nullptr, forward, std::ref(then));
}

Code SparseCode::code_of(const Selected& list) const {
  return {batch_.rows(), shaped(*list.starts, 1, batch_.rows() + 1), 0, *list.latents, *list.values};
}

// Of a gated code the open gates are collected.
void SparseCode::collect_tile(const Rows& part, const Tensor& product) {
  const std::int64_t rows = product.rows;
  const bool windowed = is("jump_relu");
  const Tensor* bars = is("gated") ? gate_bars_ : w_.threshold;
  const Collection tile{product,
                        bars == nullptr ? Tensor{} : *bars,
                        windowed ? code_.bandwidth / 2 : 0,
                        part.first,
                        code_of(main_),
                        windowed ? code_of(near_) : Code{},
                        rows * (code_.latents / kAboveShare),
                        rows * (code_.latents / kNearShare),
                        listed(part)};
  backend_.collect(tile);
}

// Runs a kernel on numbers of a list's elements; what it sums of each is added to sums [first, first + count) of its
// latent.
template <class S, class K>
void SparseCode::pass_elements(K kernel, const Selected& list, const Tensor& numbers, const Tensor& sums,
                               int first, int count) {
  const std::int64_t capacity = numbers.cols;
  const Tensor made = shaped(*element_sums_, count, capacity);
  Code code = code_of(list);
  kernel.at = {code.starts.as<std::int32_t>(),
               code.latents.as<std::int32_t>(),
               code.rows,
               made.view<S>(),
               first,
               count};
  backend_.map(shaped(numbers, capacity, 1), as_kernel(kernel), {});
  for (int i = 0; i < count; ++i) {
    code.values = made.slice_rows(i, 1);
    backend_.sum_by_latent(code, sums.slice_rows(first + i, 1));
  }
}

template <class S>
void SparseCode::add_thresholded_lists() {
  const Thresholded<S> how = thresholded<S>(batch_.weight);
  const bool windowed = is("jump_relu");
  const auto forward = [&](const Selected& list, int first, int count) {
    pass_elements<S>(ForwardElement<S>{{}, how, {}}, list, *list.values, *forward_sums_, first, count);
  };
  forward(main_, 0, kElementSums);
  if (windowed) forward(near_, ForwardSums::near, 1);
  const Code above = code_of(main_);
  decode_lists(above, 0, *main_.slopes);
  if (!with_gradient_) return;
  const auto backward = [&](const Selected& list, int sum) {
    pass_elements<S>(BackwardElement<S>{{}, how, {}, list.values->as<S>(), penalty_slopes<S>()}, list,
                     *list.slopes, *backward_sums_, sum, 1);
  };
  backward(main_, BackwardSums::delta);
  if (windowed) backward(near_, BackwardSums::near_slope);
  const CodeGradient part{above, *main_.slopes, prefixes_, 0, true};
  backend_.index_latents({&part, 1}, errors_per_row(), index(), *fired_);
}

// What opens a gate and what passes it are two codes with the same places.
template <class S>
void SparseCode::add_gated_lists() {
  const GateParameters<S> how = gate<S>(batch_.weight, *gain_);
  Code passing = code_of(main_);
  passing.values = *passing_;
  pass_elements<S>(ForwardGateElement<S>{{}, how, {}, passing_->as<S>(), opening_.values->as<S>()}, main_,
                   *main_.values, *forward_sums_, 0, kElementSums);
  decode_lists(passing, 0, *main_.slopes);
  decode_lists(code_of(opening_), 1, *opening_.slopes);
  if (!with_gradient_) return;
  const BackwardGateElement<S> backward{
      {}, how, {}, main_.values->as<S>(), opening_.slopes->as<S>(), penalty_slopes<S>()};
  pass_elements<S>(backward, main_, *main_.slopes, *backward_sums_, 0, kElementSums);
  const CodeGradient parts[] = {{passing, *main_.slopes, prefixes_, 0, true},
                                {code_of(opening_), *opening_.slopes, prefixes_, 1}};
  backend_.index_latents({parts, code_.gate_detached ? 1u : 2u}, errors_per_row(), index(), *fired_);
}

// The errors of what the lists of tiles decode to, their losses, and the slopes of the elements.
void SparseCode::decode_lists(const Code& code, std::int64_t slot, const Tensor& slopes) {
  const std::int64_t slots = errors_per_row();
  for (const Rows& part : tiles_) {
    const std::int64_t count = part.inputs.rows;
    const auto of_tile = [&](Code whole) {
      whole.rows = count;
      whole.starts = columns_of(whole.starts, part.first, count + 1);
      return whole;
    };
    Decoding decoding = decoding_of(of_tile(code), slot == 0 ? part.extra : Tensor{}, prefixes_);
    decoding.target = part.target;
    decoding.row_weight = part.weight;
    decoding.factor = slot == 0 ? &sums()->factor : &sums()->gate_factor;
    decoding.errors = errors_->slice_rows(part.first * slots, count * slots);
    decoding.slots = slots;
    decoding.first_slot = slot;
    decoding.losses = shaped(slot == 0 ? part.losses : part.gate_losses, 1, count);
    if (with_gradient_) decoding.slopes = slopes;
    if (with_gradient_ && near_.starts != nullptr) {
      decoding.more = of_tile(code_of(near_));
      decoding.more_slopes = *near_.slopes;
    }
    const auto decode = [&] { backend_.decode(decoding); };
    const auto nothing = [] {};
    backend_.either(listed(part), std::ref(decode), std::ref(nothing));
  }
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
                                                code_.bandwidth}),
                 {squares(2)});
  });
  finish_vectors();
}

}  // namespace fastsae
