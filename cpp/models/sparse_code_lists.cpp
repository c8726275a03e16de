// Tiles with few elements: instead of rows x latents a list of those, and from it all that a tile gives.
#include <algorithm>

#include "models/sparse_code.h"

namespace fastsae {
namespace {

constexpr std::int64_t kNearShare = 16;                        // as kListShare, near the threshold
constexpr std::int64_t kMostElements = std::int64_t{1} << 24;  // above, of a batch
constexpr int kElementSums = 4;                                // at most, of a pass over a list
static_assert(ForwardSums::below == kElementSums && GateSums::count == kElementSums);

}  // namespace

void SparseCode::declare_lists(Arena& scratch, std::int64_t most_rows) {
  const std::int64_t rows = std::min(most_rows, most_listed_rows());
  if (rows == 0) return;
  const std::int64_t n = code_.latents, above = rows * (n / kListShare), near = rows * (n / kNearShare);
  const auto make = [&](const char* name, std::int64_t cols) {
    return &scratch.declare(name, 1, cols, spec_.dtype);
  };
  const std::int64_t tiles = rows / tile_rows(rows) + 1;
  tiles_.reserve(static_cast<std::size_t>(tiles));
  listed_ = &scratch.declare("listed", 1, tiles, DType::f64);
  element_sums_ = make("element_sums", std::max(kElementSums * above, (counts_rows() ? 2 : 1) * near));
  declare_selected(scratch, main_, "above", rows, above);
  if (is("jump_relu")) declare_selected(scratch, near_, "near", rows, near);
  declare_index(scratch, is("gated") && !code_.gate_detached ? 2 * above : above);
  if (!is("gated")) return;
  gate_bars_ = make("gate_bars", n);
  passing_ = make("passing", above);
  opening_ = {main_.starts, main_.latents, make("opening", above), make("opening_slopes", above)};
}

// Whether a tile with few elements goes on as a list of them. The penalty on dead latents looks at all of theirs.
bool SparseCode::collects() const { return batch_.rows() <= most_listed_rows(); }

// Of a batch with lists: about 64 bytes for each element that fits.
std::int64_t SparseCode::most_listed_rows() const {
  if (code_.latents < kListShare || constants().pre_act_weight > 0 || !backend_.chooses()) return 0;
  return kMostElements / (code_.latents / kListShare);
}

double* SparseCode::listed(const Rows& part) const {
  return listed_->as<double>() + part.first / tile_rows(batch_.rows());
}

void SparseCode::if_listed(const Rows& part, const std::function<void()>& body) {
  backend_.either(listed(part), body, [] {});
}

Code SparseCode::code_of(const Selected& list) const {
  return {batch_.rows(), shaped(*list.starts, 1, batch_.rows() + 1), 0, *list.latents, *list.values};
}

// Of a gated code the open gates are collected.
void SparseCode::collect_tile(const Rows& part, const Tensor& product) {
  const std::int64_t rows = product.rows;
  const bool windowed = is("jump_relu");
  const Tensor* bars = is("gated") ? gate_bars_ : w_.threshold;
  backend_.collect({product, bars == nullptr ? Tensor{} : *bars, windowed ? code_.bandwidth / 2 : 0,
                    part.first, code_of(main_), windowed ? code_of(near_) : Code{},
                    rows * (code_.latents / kListShare), rows * (code_.latents / kNearShare), listed(part)});
  tiles_.push_back(part);
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
  const Thresholded<S> how = thresholded<S>(batch_.weight, 0);
  const bool windowed = is("jump_relu");
  const auto forward = [&](const Selected& list, int first, int count) {
    pass_elements<S>(ForwardElement<S>{{}, how, {}}, list, *list.values, *forward_sums_, first, count);
  };
  forward(main_, 0, kElementSums);
  if (windowed) forward(near_, ForwardSums::near, 1);
  if (counts_rows()) {
    for (const Rows& part : tiles_) {
      const auto count = [&] { count_rows<S>(part, {}); };
      if_listed(part, std::ref(count));
    }
  }
  const Code above = code_of(main_);
  decode_lists(above, 0, *main_.slopes);
  if (!with_gradient_) return;
  const auto backward = [&](const Selected& list, int sum, int count) {
    pass_elements<S>(BackwardElement<S>{{}, how, {}, list.values->as<S>(), penalty_slopes<S>()}, list,
                     *list.slopes, *backward_sums_, sum, count);
  };
  backward(main_, BackwardSums::delta, 1);
  if (windowed) backward(near_, BackwardSums::near_slope, counts_rows() ? 2 : 1);
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
    if_listed(part, std::ref(decode));
  }
}

// Of all tiles that are lists, if some are.
void SparseCode::add_lists() {
  if (!collects()) return;
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    if (is("gated"))
      add_gated_lists<S>();
    else
      add_thresholded_lists<S>();
  });
}

}  // namespace fastsae
