// A row's latents are gathered once: what the output took from memory is in the second-level cache when the slopes
// need it.
#include "cpu/decode.h"

#include <algorithm>

#include "cpu/float_mode.h"
#include "cpu/levels.h"
#include "cpu/vectors.h"
#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

template <class S>
struct DecodeRows {
  const Decoding& d;

  [[gnu::always_inline]] inline void operator()(Range rows) const {
    for (std::int64_t row = rows.begin; row < rows.end; ++row) decode(row);
  }

  [[gnu::always_inline]] inline const S* latent(const Code& code, std::int64_t element) const {
    return d.weight.as<S>() + code.latents.as<std::int32_t>()[element] * d.weight.stride;
  }

  [[gnu::always_inline]] inline void decode(std::int64_t row) const {
    const std::int32_t* latents = d.code.latents.as<std::int32_t>();
    const std::int64_t begin = d.code.begin(row), end = d.code.begin(row + 1), width = d.errors.cols;
    const std::int64_t groups = d.prefixes.count;
    S* first = d.errors.as<S>() + (row * d.slots + d.first_slot) * d.errors.stride;
    begin_output(row, first, width);
    double loss = 0, last_loss = 0;
    std::int64_t at = begin;
    for (std::int64_t group = 0; group < groups; ++group) {
      S* out = first + group * d.errors.stride;
      std::int64_t stop = at;
      while (stop < end && latents[stop] < d.prefixes.ends[group]) ++stop;
      add_elements(out, at, stop, width);
      at = stop;
      if (!d.target.exists()) return;
      if (group + 1 < groups) std::copy_n(out, width, out + d.errors.stride);
      const double square = compare(row, out, d.prefixes.weights[group], group + 1 == groups, width);
      loss += d.prefixes.weights[group] * square;
      last_loss = square;
    }
    const double share = static_cast<double>(d.row_weight.as<S>()[row]);
    d.losses.as<double>()[row] = share * loss;
    if (d.last_losses.exists()) d.last_losses.as<double>()[row] = share * last_loss;
    for (std::int64_t group = groups - 1; group-- > 0;) {
      S* out = first + group * d.errors.stride;
      const S* next = out + d.errors.stride;
#pragma GCC ivdep
      for (std::int64_t i = 0; i < width; ++i) out[i] += next[i];
    }
    if (d.slopes.exists()) find_slopes(d.code, d.slopes, row, first, width);
    if (d.more_slopes.exists()) find_slopes(d.more, d.more_slopes, row, first, width);
  }

  [[gnu::always_inline]] inline void begin_output(std::int64_t row, S* out, std::int64_t width) const {
    const S* bias = d.bias.as<S>();
    if (d.bias.exists())
      std::copy_n(bias, width, out);
    else
      std::fill_n(out, width, S(0));
    if (!d.extra.exists()) return;
    const S* extra = d.extra.as<S>() + row * d.extra.stride;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < width; ++i) out[i] += extra[i];
  }

  [[gnu::always_inline]] inline void add_elements(S* out, std::int64_t at, std::int64_t end,
                                                  std::int64_t width) const {
    const S* values = d.code.values.as<S>();
    for (; at + 4 <= end; at += 4) {
      const S* x[4] = {latent(d.code, at), latent(d.code, at + 1), latent(d.code, at + 2),
                       latent(d.code, at + 3)};
      add_scaled<S, 4>(out, x, values + at, width);
    }
    for (; at < end; ++at) {
      const S* x[1] = {latent(d.code, at)};
      add_scaled<S, 1>(out, x, values + at, width);
    }
  }

  // An output becomes its share of the gradient; returns its squared error.
  [[gnu::always_inline]] inline double compare(std::int64_t row, S* out, double weight, bool last,
                                               std::int64_t width) const {
    const S* target = d.target.as<S>() + row * d.target.stride;
    const S factor = static_cast<S>(*d.factor * weight * static_cast<double>(d.row_weight.as<S>()[row]));
    S* residual = last && d.residual.exists() ? d.residual.as<S>() + row * d.residual.stride : nullptr;
    S lanes[kVectorLanes] = {};
    double sum = 0;
    for (std::int64_t i = 0; i < width; i += kVectorLanes) {
      const std::int64_t count = std::min(kVectorLanes, width - i);
#pragma GCC ivdep
      for (std::int64_t lane = 0; lane < count; ++lane) {
        const S error = out[i + lane] - target[i + lane];
        lanes[lane] += error * error;
        out[i + lane] = factor * error;
        if (residual != nullptr) residual[i + lane] = -error;
      }
    }
    for (const S lane : lanes) sum += static_cast<double>(lane);
    return sum;
  }

  [[gnu::always_inline]] inline void find_slopes(const Code& code, const Tensor& into, std::int64_t row,
                                                 const S* first, std::int64_t width) const {
    const std::int32_t* latents = code.latents.as<std::int32_t>();
    S* slopes = into.as<S>();
    std::int64_t group = 0;
    for (std::int64_t at = code.begin(row), end = code.begin(row + 1); at < end;) {
      while (latents[at] >= d.prefixes.ends[group]) ++group;
      const S* error = first + group * d.errors.stride;
      if (at + 3 < end && latents[at + 3] < d.prefixes.ends[group]) {
        dot_four(error, {latent(code, at), latent(code, at + 1), latent(code, at + 2), latent(code, at + 3)},
                 width, slopes + at);
        at += 4;
      } else {
        slopes[at] = dot(error, latent(code, at), width);
        ++at;
      }
    }
  }
};

template <class S>
struct Norms {
  const Tensor& of;
  const Tensor& norms;
  [[gnu::always_inline]] inline void operator()(Range rows) const {
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      const S* line = of.as<S>() + row * of.stride;
      norms.as<S>()[row] = square_root(dot(line, line, of.cols));
    }
  }
};

}  // namespace

void decode(const Decoding& decoding, Range rows) {
  FlushDenormals flush;
  with_scalar(decoding.errors.dtype, [&](auto s) { run_at_level(DecodeRows<decltype(s)>{decoding}, rows); });
}

void write_code(const Code& code, const Tensor& rows, Range range) {
  with_scalar(rows.dtype, [&](auto s) {
    using S = decltype(s);
    const std::int32_t* latents = code.latents.as<std::int32_t>();
    for (std::int64_t row = range.begin; row < range.end; ++row) {
      S* line = rows.as<S>() + row * rows.stride;
      std::fill_n(line, rows.cols, S(0));
      for (std::int64_t i = code.begin(row); i < code.begin(row + 1); ++i)
        line[latents[i]] = code.values.as<S>()[i];
    }
  });
}

void row_norms(const Tensor& of, const Tensor& norms, Range rows) {
  FlushDenormals flush;
  with_scalar(of.dtype, [&](auto s) { run_at_level(Norms<decltype(s)>{of, norms}, rows); });
}

}  // namespace fastsae::cpu
