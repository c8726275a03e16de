// Each latent's gradient rows are summed up in a buffer that stays in cache, and used at once: to measure them, to
// write them down, or to update the latent's rows of both matrices. Long lists are cut in segments, whose sums are made
// before, so that a latent that fires everywhere keeps no thread waiting; the cuts do not depend on threads.
#include "cpu/latents.h"

#include <algorithm>

#include "cpu/float_mode.h"
#include "cpu/levels.h"
#include "cpu/pool.h"
#include "cpu/vectors.h"
#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kTasksPerThread = 8;
constexpr std::int64_t kLatentCost = 8;  // of a latent's own rows, in elements of its list

// Ranges of latents that take about the same time.
class Shares {
 public:
  explicit Shares(const LatentRows& rows)
      : begins_(rows.index.begins.as<std::int32_t>()),
        latents_(rows.encoder.rows),
        parts_(std::min(latents_, kTasksPerThread * num_threads())) {}
  std::int64_t parts() const { return parts_; }
  Range operator[](std::int64_t part) const { return {begin(part), begin(part + 1)}; }

 private:
  std::int64_t cost(std::int64_t latents) const {
    return kLatentCost * latents + (begins_ == nullptr ? 0 : begins_[latents]);
  }
  std::int64_t begin(std::int64_t part) const {
    std::int64_t low = 0, high = latents_;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (cost(middle) * parts_ < cost(latents_) * part)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

  const std::int32_t* begins_;
  std::int64_t latents_, parts_;
};

// The gradient rows of one latent.
template <class S>
struct Gradient {
  S* encoder;  // [features]
  S* decoder;  // [outputs]
  double sum;  // of the slopes
};

template <class S>
struct Gather {
  const LatentRows& rows;

  // Adds the elements [at, end) of the index.
  [[gnu::always_inline]] inline void add(std::int64_t at, std::int64_t end, Gradient<S>& g) const {
    constexpr int kAtOnce = 4;
    for (; at + kAtOnce <= end; at += kAtOnce) add_some<kAtOnce>(at, g);
    if (end - at == 3) return add_some<3>(at, g);
    if (end - at == 2) return add_some<2>(at, g);
    if (end - at == 1) add_some<1>(at, g);
  }

  template <int count>
  [[gnu::always_inline]] inline void add_some(std::int64_t at, Gradient<S>& g) const {
    const std::int32_t* slots = rows.index.slots.as<std::int32_t>() + at;
    const S* slopes = rows.index.slopes.as<S>() + at;
    const S* inputs[count];
    const S* errors[count];
    for (int i = 0; i < count; ++i) {
      inputs[i] = rows.inputs.as<S>() + slots[i] / rows.slots * rows.inputs.stride;
      errors[i] = rows.errors.as<S>() + slots[i] * rows.errors.stride;
      g.sum += static_cast<double>(slopes[i]);
    }
    add_scaled<S, count>(g.encoder, inputs, slopes, rows.encoder.cols);
    add_scaled<S, count>(g.decoder, errors, rows.index.values.as<S>() + at, rows.decoder.cols);
  }

  // The whole gradient of a latent. `segment` is the first of the long lists at or after it, and moves on.
  [[gnu::always_inline]] inline void operator()(std::int64_t latent, std::int64_t& segment,
                                                Gradient<S>& g) const {
    const std::int64_t features = rows.encoder.cols, outputs = rows.decoder.cols;
    g.sum = 0;
    if (rows.has_matrices()) {
      std::copy_n(rows.encoder_gradient.as<S>() + latent * rows.encoder_gradient.stride, features, g.encoder);
      std::copy_n(rows.decoder_gradient.as<S>() + latent * rows.decoder_gradient.stride, outputs, g.decoder);
    } else {
      std::fill_n(g.encoder, features, S(0));
      std::fill_n(g.decoder, outputs, S(0));
    }
    if (rows.index.begins.exists()) {
      const std::int32_t* begins = rows.index.begins.as<std::int32_t>();
      const std::int64_t count = begins[latent + 1] - begins[latent];
      if (count <= LatentIndex::kSegment)
        add(begins[latent], begins[latent + 1], g);
      else
        add_partials(latent, segment, g);
    }
    if (!rows.pull.exists()) return;
    const S* one[1] = {rows.decoder.as<S>() + latent * rows.decoder.stride};
    const S share = static_cast<S>(rows.pull.as<double>()[latent]);
    add_scaled<S, 1>(g.decoder, one, &share, outputs);
  }

  [[gnu::always_inline]] inline void add_partials(std::int64_t latent, std::int64_t& segment,
                                                  Gradient<S>& g) const {
    const std::int32_t* segments = rows.index.segments.as<std::int32_t>();
    const std::int32_t* begins = rows.index.begins.as<std::int32_t>();
    const std::int64_t features = rows.encoder.cols, outputs = rows.decoder.cols;
    const S one = 1;
    while (segments[2 * segment] < latent) ++segment;
    for (std::int64_t at = begins[latent]; at < begins[latent + 1]; at += LatentIndex::kSegment, ++segment) {
      const S* partial = rows.index.partials.as<S>() + segment * rows.index.partials.stride;
      const S* decoder[1] = {partial};
      const S* encoder[1] = {partial + outputs};
      add_scaled<S, 1>(g.decoder, decoder, &one, outputs);
      add_scaled<S, 1>(g.encoder, encoder, &one, features);
    }
    for (std::int64_t at = begins[latent]; at < begins[latent + 1]; ++at)
      g.sum += static_cast<double>(rows.index.slopes.as<S>()[at]);
  }

  // Leaves out what is parallel to the latent's row of the decoder.
  [[gnu::always_inline]] inline void project(std::int64_t latent, S* gradient) const {
    const std::int64_t outputs = rows.decoder.cols;
    const S* row[1] = {rows.decoder.as<S>() + latent * rows.decoder.stride};
    S sums[2];  // of the row's squares, and of its products with the gradient
    dot_two(row[0], row[0], gradient, outputs, sums);
    if (sums[0] == S(0)) return;
    const S share = -sums[1] / sums[0];
    add_scaled<S, 1>(gradient, row, &share, outputs);
  }
};

template <class S>
Gradient<S> buffers(double* memory, const LatentRows& rows) {
  S* encoder = aligned<S>(memory);
  return {encoder, encoder + (rows.encoder.cols + 15) / 16 * 16, 0};
}

template <class S>
struct SumSegments {
  Gather<S> gather;
  [[gnu::always_inline]] inline void operator()(Range segments) const {
    const LatentIndex& index = gather.rows.index;
    const std::int32_t* begins = index.begins.template as<std::int32_t>();
    for (std::int64_t segment = segments.begin; segment < segments.end; ++segment) {
      const std::int32_t* place = index.segments.template as<std::int32_t>() + 2 * segment;
      S* partial = index.partials.template as<S>() + segment * index.partials.stride;
      std::fill_n(partial, index.partials.cols, S(0));
      Gradient<S> g{partial + gather.rows.decoder.cols, partial, 0};
      gather.add(place[1], std::min<std::int64_t>(place[1] + LatentIndex::kSegment, begins[place[0] + 1]), g);
    }
  }
};

template <class S>
struct Measure {
  Gather<S> gather;
  Gradient<S> buffer;
  const Tensor& squares;
  const Tensor& sums;
  [[gnu::always_inline]] inline void operator()(Range latents) const {
    Gradient<S> g = buffer;
    std::int64_t segment = 0;
    for (std::int64_t latent = latents.begin; latent < latents.end; ++latent) {
      gather(latent, segment, g);
      if (gather.rows.project) gather.project(latent, g.decoder);
      squares.as<double>()[latent] =
          static_cast<double>(dot(g.encoder, g.encoder, gather.rows.encoder.cols)) +
          static_cast<double>(dot(g.decoder, g.decoder, gather.rows.decoder.cols));
      if (sums.exists()) sums.as<S>()[latent] = static_cast<S>(g.sum);
    }
  }
};

template <class S>
struct Write {
  Gather<S> gather;
  Gradient<S> buffer;
  const Tensor& encoder;
  const Tensor& decoder;
  [[gnu::always_inline]] inline void operator()(Range latents) const {
    Gradient<S> g = buffer;
    std::int64_t segment = 0;
    for (std::int64_t latent = latents.begin; latent < latents.end; ++latent) {
      gather(latent, segment, g);
      std::copy_n(g.encoder, encoder.cols, encoder.as<S>() + latent * encoder.stride);
      std::copy_n(g.decoder, decoder.cols, decoder.as<S>() + latent * decoder.stride);
    }
  }
};

template <class S, class Step>
struct UpdateRows {
  Gather<S> gather;
  Gradient<S> buffer;
  const LatentUpdate& update;
  typename Step::template Scalars<S> encoder_scalars, decoder_scalars;
  S scale;

  [[gnu::always_inline]] inline void operator()(Range latents) const {
    const LatentRows& rows = gather.rows;
    Gradient<S> g = buffer;
    std::int64_t segment = 0;
    for (std::int64_t latent = latents.begin; latent < latents.end; ++latent) {
      gather(latent, segment, g);
      if (rows.project) gather.project(latent, g.decoder);
      step(latent, rows.encoder, update.encoder, encoder_scalars, g.encoder);
      step(latent, rows.decoder, update.decoder, decoder_scalars, g.decoder);
      if (update.unit_norm) normalize(rows.decoder.as<S>() + latent * rows.decoder.stride, rows.decoder.cols);
    }
  }

  [[gnu::always_inline]] inline void step(std::int64_t latent, const Tensor& value, const MatrixUpdate& how,
                                          const typename Step::template Scalars<S>& scalars,
                                          const S* __restrict gradient) const {
    S* __restrict p = value.as<S>() + latent * value.stride;
    S* __restrict m = Step::moments > 0 ? how.first.as<S>() + latent * how.first.stride : nullptr;
    S* __restrict v = Step::moments > 1 ? how.second.as<S>() + latent * how.second.stride : nullptr;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < value.cols; ++i) {
      S unused = S(0);
      S& first = Step::moments > 0 ? m[i] : unused;
      S& second = Step::moments > 1 ? v[i] : unused;
      p[i] = Step::next(p[i], scale * gradient[i], first, second, scalars);
    }
  }

  [[gnu::always_inline]] inline static void normalize(S* row, std::int64_t size) {
    const S norm = square_root(dot(row, row, size));
    if (norm == S(0)) return;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < size; ++i) row[i] /= norm;
  }
};

// Runs make_job(buffer of the task) over shares of the latents.
template <class S, class MakeJob>
void each_share(const LatentRows& rows, Scratch& scratch, const Parallel& parallel, const MakeJob& make_job) {
  const Shares shares(rows);
  const std::size_t doubles = doubles_for<S>(rows.encoder.cols + rows.decoder.cols + 32);
  Scratch::Lease lease(scratch, doubles * static_cast<std::size_t>(shares.parts()));
  const auto task = [&](std::int64_t part) {
    FlushDenormals flush;
    double* memory = lease.data() + static_cast<std::size_t>(part) * doubles;
    run_at_level(make_job(buffers<S>(memory, rows)), shares[part]);
  };
  parallel(shares.parts(), task);
}

template <class S>
void sum_segments(const LatentRows& rows, const Parallel& parallel) {
  const std::int32_t* segments = rows.index.segments.as<std::int32_t>();
  std::int64_t count = 0;
  while (count < rows.index.segments.rows && segments[2 * count] >= 0) ++count;
  if (count == 0) return;
  const auto task = [&](std::int64_t segment) {
    FlushDenormals flush;
    run_at_level(SumSegments<S>{{rows}}, {segment, segment + 1});
  };
  parallel(count, task);
}

template <class S, class Step>
void update_with(const LatentRows& rows, const LatentUpdate& update, Scratch& scratch,
                 const Parallel& parallel) {
  const auto encoder = Step::template at_step<S>(update.encoder.constants, *update.step);
  const auto decoder = Step::template at_step<S>(update.decoder.constants, *update.step);
  const S scale = static_cast<S>(update.log->gradient_scale);
  each_share<S>(rows, scratch, parallel, [&](const Gradient<S>& buffer) {
    return UpdateRows<S, Step>{{rows}, buffer, update, encoder, decoder, scale};
  });
}

}  // namespace

void measure_latents(const LatentRows& rows, const Tensor& squares, const Tensor& sums, Scratch& scratch,
                     const Parallel& parallel) {
  with_scalar(rows.encoder.dtype, [&](auto s) {
    using S = decltype(s);
    if (rows.index.begins.exists()) sum_segments<S>(rows, parallel);
    each_share<S>(rows, scratch, parallel,
                  [&](const Gradient<S>& buffer) { return Measure<S>{{rows}, buffer, squares, sums}; });
  });
}

void write_latents(const LatentRows& rows, const Tensor& encoder, const Tensor& decoder, Scratch& scratch,
                   const Parallel& parallel) {
  with_scalar(rows.encoder.dtype, [&](auto s) {
    using S = decltype(s);
    each_share<S>(rows, scratch, parallel,
                  [&](const Gradient<S>& buffer) { return Write<S>{{rows}, buffer, encoder, decoder}; });
  });
}

void update_latents(const LatentRows& rows, const LatentUpdate& update, Scratch& scratch,
                    const Parallel& parallel) {
  if (update.log->failed != 0) return;
  int place = 0;
  for_each_type(OptimizerSteps{}, [&](auto* step) {
    using Step = std::remove_pointer_t<decltype(step)>;
    if (place++ != update.encoder.optimizer) return;
    with_scalar(rows.encoder.dtype,
                [&](auto s) { update_with<decltype(s), Step>(rows, update, scratch, parallel); });
  });
}

}  // namespace fastsae::cpu
