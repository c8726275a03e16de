// Inference of a sparse code. A row's loss counts the whole code's output alone.
#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "models/sparse_code.h"

namespace fastsae {

// What a call needs beside rows of inputs and outputs, in this order.
struct SparseCode::CallMemory {
  Tensor norms, gain;      // [1 x latents]
  Tensor values, latents;  // [rows x k] of a TopK code
  Tensor code;             // [tile x latents], where codes are written down
  Code elements;           // room for those of a tile that has few

  CallMemory(const SparseCode& model, const Tensor& memory, std::int64_t rows) {
    std::int64_t at = 0;
    const auto take = [&](std::int64_t r, std::int64_t c, DType dtype) {
      Tensor part = shaped(memory, memory.size(), 1).slice_rows(at, 1);
      at += r * c;
      return shaped(part, r, c, dtype);
    };
    const std::int64_t n = model.code_.latents;
    norms = take(1, n, memory.dtype);
    gain = take(1, n, memory.dtype);
    if (model.is("topk")) {
      const auto k = static_cast<std::int64_t>(std::llround(model.code_.k));
      values = take(rows, k, memory.dtype);
      latents = take(rows, k, DType::i32);
    }
    if (!model.writes_tiles()) return;
    const std::int64_t tile = model.tile_rows(rows), most = tile * (n / kListShare);
    code = take(tile, n, memory.dtype);
    elements = {tile, take(1, tile + 1, DType::i32), 0, take(1, most, DType::i32),
                take(1, most, memory.dtype)};
  }
};

bool SparseCode::writes_tiles() const { return !is("topk") || is_rescaled(); }

std::int64_t SparseCode::layer_work(std::int64_t rows) const {
  const std::int64_t n = code_.latents;
  const std::int64_t selected = 2 * rows * static_cast<std::int64_t>(std::llround(code_.k));
  const std::int64_t tile = tile_rows(rows), written = tile * (n + 2 * (n / kListShare)) + tile + 1;
  return 2 * n + (is("topk") ? selected : 0) + (writes_tiles() ? written : 0);
}

Tensor SparseCode::centered(Tensor x, const Work& work) const {
  if (!code_.pre_bias) return x;
  const Tensor input = shaped(work.rows[0], x.rows, x.cols);
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    backend_.map(input, as_kernel(Centered<S>{{}, x.view<const S>(), w_.decoder_bias->as<S>()}), {});
  });
  return input;
}

Tensor SparseCode::skipped(Tensor x, const Work& work) const {
  if (!code_.skip) return {};
  const Tensor out = shaped(work.rows[1], x.rows, spec_.n_outputs);
  backend_.product({x}, {*w_.skip, true}, out, false, nullptr, {});
  return out;
}

// The k largest of each row, rectified; `scaled` as they are reported, else as the decoder takes them.
Code SparseCode::select_rows(Tensor inputs, const CallMemory& memory, bool scaled) const {
  const Tensor scale = is_rescaled() ? memory.norms : Tensor{};
  backend_.encode_select({inputs, *w_.encoder, *w_.bias, memory.values, memory.latents, scale, true});
  const std::int64_t count = memory.values.size();
  const Code code{
      inputs.rows, {}, memory.values.cols, shaped(memory.latents, 1, count), shaped(memory.values, 1, count)};
  make_coefficients(code, scaled ? Tensor{} : scale, true);
  return code;
}

// All elements of the others.
void SparseCode::encode_tile(Tensor inputs, Tensor code, const CallMemory& memory, bool scaled) const {
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    const S* scale = is_rescaled() ? memory.norms.as<S>() : nullptr;
    Kernel kernel{};
    if (is("gated")) {
      backend_.map(memory.gain, as_kernel(ExpOf<S>{{}, w_.log_gain->as<S>()}), {});
      const GateParameters<S> gate{w_.bias->as<S>(), w_.magnitude_bias->as<S>(), memory.gain.as<S>(), nullptr,
                                   nullptr};
      kernel = as_kernel(InferGate<S>{{}, gate, scaled ? scale : nullptr});
    } else {
      kernel = as_kernel(InferCode<S>{{},
                                      w_.bias->as<S>(),
                                      scale,
                                      w_.threshold == nullptr ? nullptr : w_.threshold->as<S>(),
                                      bar_ == nullptr ? nullptr : bar_->as<double>(),
                                      scaled});
    }
    backend_.product({inputs}, {*w_.encoder, true}, code, false, &kernel, {});
  });
}

void SparseCode::encode(Tensor x, Tensor code, const Work& work) const {
  const CallMemory memory(*this, work.layer, x.rows);
  if (is_rescaled()) backend_.row_norms(*w_.decoder, memory.norms);
  const Tensor inputs = centered(x, work);
  if (!is("topk")) return encode_tile(inputs, code, memory, true);
  backend_.write_code(select_rows(inputs, memory, true), code);
}

void SparseCode::encode_blocks(Tensor x, Tensor, const Work& work, const TakeBlock& take) const {
  const CallMemory memory(*this, work.layer, x.rows);
  if (is_rescaled()) backend_.row_norms(*w_.decoder, memory.norms);
  const Tensor inputs = centered(x, work);
  if (is("topk")) return take(select_rows(inputs, memory, true));
  for (std::int64_t first = 0; first < x.rows; first += memory.code.rows) {
    const std::int64_t count = std::min(memory.code.rows, x.rows - first);
    const Tensor code = memory.code.slice_rows(0, count);
    encode_tile(inputs.slice_rows(first, count), code, memory, true);
    Code list = memory.elements;
    list.rows = count;
    if (backend_.list_elements(code, list))
      take(list);
    else
      take(code);
  }
}

void SparseCode::output_of(Tensor code, Tensor extra, Tensor output) const {
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    const Kernel kernel = as_kernel(AddExtra<S>{{}, w_.decoder_bias->as<S>(), extra.view<const S>()});
    backend_.product({code}, {*w_.decoder}, output, false, &kernel, {});
  });
}

void SparseCode::decode(Tensor code, Tensor output, const Work& work) const {
  if (!is_rescaled()) return output_of(code, {}, output);
  const CallMemory memory(*this, work.layer, code.rows);
  backend_.row_norms(*w_.decoder, memory.norms);
  for (std::int64_t first = 0; first < code.rows; first += memory.code.rows) {
    const std::int64_t count = std::min(memory.code.rows, code.rows - first);
    const Tensor part = memory.code.slice_rows(0, count);
    with_scalar(spec_.dtype, [&](auto s) {
      using S = decltype(s);
      const View<const S> reported = code.slice_rows(first, count).view<const S>();
      backend_.map(part, as_kernel(Unscaled<S>{{}, reported, memory.norms.as<S>()}), {});
    });
    output_of(part, {}, output.slice_rows(first, count));
  }
}

void SparseCode::reconstruct(Tensor x, Tensor output, const Work& work) const {
  const CallMemory memory(*this, work.layer, x.rows);
  if (is_rescaled()) backend_.row_norms(*w_.decoder, memory.norms);
  const Tensor inputs = centered(x, work), extra = skipped(x, work);
  if (is("topk")) {
    Decoding decoding = decoding_of(select_rows(inputs, memory, false), extra, whole());
    decoding.errors = output;
    return backend_.decode(decoding);
  }
  for (std::int64_t first = 0; first < x.rows; first += memory.code.rows) {
    const std::int64_t count = std::min(memory.code.rows, x.rows - first);
    const Tensor code = memory.code.slice_rows(0, count);
    encode_tile(inputs.slice_rows(first, count), code, memory, false);
    output_of(code, code_.skip ? extra.slice_rows(first, count) : extra, output.slice_rows(first, count));
  }
}

void SparseCode::encode_distribution(Tensor, Tensor, const Work&) const {
  throw ValueError("X: this model's code has no distribution");
}

void SparseCode::score_output(Tensor target, Tensor output, Tensor losses) const {
  with_scalar(spec_.dtype, [&](auto s) {
    using S = decltype(s);
    backend_.map(output, as_kernel(SquaredDistance<S>{target.view<const S>()}), {losses});
  });
}

void SparseCode::score(Tensor x, Tensor target, Tensor output, Tensor losses, const Work& work) const {
  reconstruct(x, output, work);
  score_output(target, output, losses);
}

void SparseCode::score_code(Tensor code, Tensor target, Tensor output, Tensor losses,
                            const Work& work) const {
  decode(code, output, work);
  score_output(target, output, losses);
}

double SparseCode::loss_factor() const {
  if (spec_.loss_reduction == "mean") return 1.0 / static_cast<double>(spec_.n_outputs);
  return spec_.loss_reduction == "ufldl" ? 0.5 : 1.0;
}

}  // namespace fastsae
