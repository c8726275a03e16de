// A counting sort. Each chunk of rows counts its elements of each latent and later puts them where those of the chunks
// before it end; the order of the result depends on no number of threads.
#include <algorithm>

#include "cpu/latents.h"
#include "cpu/partition.h"
#include "cpu/pool.h"
#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kChunkRows = 64;  // at least

template <class S>
class IndexLatents {
 public:
  IndexLatents(std::span<const CodeGradient> codes, std::int64_t slots, const LatentIndex& index,
               const Tensor& fired, Scratch& scratch)
      : codes_(codes),
        slots_(slots),
        index_(index),
        fired_(fired),
        latents_(index.begins.cols - 1),
        rows_(codes[0].code.rows),
        chunks_(Even{rows_, std::clamp<std::int64_t>(rows_ / kChunkRows, 1, num_threads())}),
        lease_(scratch, doubles_for<std::int32_t>(tasks() * latents_)),
        counts_(aligned<std::int32_t>(lease_.data())) {}

  void run(const Parallel& parallel) {
    parallel(tasks(), [this](std::int64_t task) { count(task); });
    place();
    parallel(tasks(), [this](std::int64_t task) { put(task); });
  }

 private:
  std::int64_t tasks() const { return static_cast<std::int64_t>(codes_.size()) * chunks_.parts; }

  template <class F>
  void each(std::int64_t task, const F& f) const {
    const CodeGradient& part = codes_[static_cast<std::size_t>(task / chunks_.parts)];
    const Range rows = chunks_[task % chunks_.parts];
    const std::int32_t* latents = part.code.latents.as<std::int32_t>();
    const S* values = part.code.values.template as<S>();
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
      std::int64_t group = 0;
      for (std::int64_t i = part.code.begin(row), end = part.code.begin(row + 1); i < end; ++i) {
        if (values[i] == S(0) && !part.keep_zeros) continue;
        while (latents[i] >= part.prefixes.ends[group]) ++group;
        f(latents[i], row * slots_ + part.first_slot + group, values[i], part.slopes.template as<S>()[i]);
      }
    }
  }

  void count(std::int64_t task) {
    std::int32_t* counts = counts_ + task * latents_;
    std::fill_n(counts, latents_, 0);
    each(task, [counts](std::int32_t latent, std::int64_t, S, S) { ++counts[latent]; });
  }

  // Counts become places.
  void place() {
    std::int32_t* begins = index_.begins.template as<std::int32_t>();
    std::int32_t* segments = index_.segments.template as<std::int32_t>();
    double* fired = fired_.template as<double>();
    std::int32_t total = 0;
    std::int64_t made = 0;
    for (std::int64_t latent = 0; latent < latents_; ++latent) {
      begins[latent] = total;
      std::int32_t of_first = 0;
      for (std::int64_t task = 0; task < tasks(); ++task) {
        std::int32_t& place = counts_[task * latents_ + latent];
        const std::int32_t count = place;
        place = total;
        total += count;
        if (task < chunks_.parts) of_first += count;
      }
      fired[latent] = of_first;
      if (total - begins[latent] <= LatentIndex::kSegment) continue;
      for (std::int64_t at = begins[latent]; at < total; at += LatentIndex::kSegment, ++made) {
        segments[2 * made] = static_cast<std::int32_t>(latent);
        segments[2 * made + 1] = static_cast<std::int32_t>(at);
      }
    }
    begins[latents_] = total;
    if (made < index_.segments.rows) segments[2 * made] = -1;
  }

  void put(std::int64_t task) {
    std::int32_t* places = counts_ + task * latents_;
    std::int32_t* slots = index_.slots.template as<std::int32_t>();
    S* values = index_.values.template as<S>();
    S* slopes = index_.slopes.template as<S>();
    each(task, [=](std::int32_t latent, std::int64_t slot, S value, S slope) {
      const std::int32_t at = places[latent]++;
      slots[at] = static_cast<std::int32_t>(slot);
      values[at] = value;
      slopes[at] = slope;
    });
  }

  const std::span<const CodeGradient> codes_;
  const std::int64_t slots_;
  const LatentIndex& index_;
  const Tensor& fired_;
  const std::int64_t latents_, rows_;
  const Even chunks_;
  Scratch::Lease lease_;
  std::int32_t* const counts_;  // [tasks x latents]
};

}  // namespace

void index_latents(std::span<const CodeGradient> codes, std::int64_t slots, const LatentIndex& index,
                   const Tensor& fired, Scratch& scratch, const Parallel& parallel) {
  with_scalar(index.values.dtype,
              [&](auto s) { IndexLatents<decltype(s)>(codes, slots, index, fired, scratch).run(parallel); });
}

}  // namespace fastsae::cpu
