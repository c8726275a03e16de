// The encoder's rows of dead latents are copied side by side, so that selecting among them is a product of their size.
#include <algorithm>

#include "cpu/latents.h"
#include "cpu/pool.h"
#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kCopiedRows = 64;  // of a task

template <class S>
void select_among(const DeadSelection& all, const std::int32_t* dead, std::int64_t count, Precision precision,
                  RoundingTrials& trials, Scratch& scratch, const Parallel& parallel) {
  const std::int64_t width = all.x.cols, rows = all.x.rows, k = std::min(all.k, count);
  Scratch::Lease lease(scratch, doubles_for<S>(count * (width + 2)));
  S* copy = aligned<S>(lease.data());
  const Tensor weight{copy, count, width, width, all.x.dtype};
  const Tensor bias{copy + count * width, 1, count, count, all.x.dtype};
  const Tensor scale{copy + count * (width + 1), 1, count, count, all.x.dtype};
  const auto copy_rows = [&](std::int64_t part) {
    for (std::int64_t i = part * kCopiedRows; i < std::min(count, (part + 1) * kCopiedRows); ++i) {
      std::copy_n(all.weight.as<S>() + dead[i] * all.weight.stride, width, weight.as<S>() + i * width);
      bias.as<S>()[i] = all.bias.as<S>()[dead[i]];
      if (all.scale.exists()) scale.as<S>()[i] = all.scale.as<S>()[dead[i]];
    }
  };
  parallel((count + kCopiedRows - 1) / kCopiedRows, copy_rows);
  const Tensor latents = shaped(all.code.latents, rows, k);
  encode_select({all.x, weight, bias, shaped(all.code.values, rows, k), latents,
                 all.scale.exists() ? scale : Tensor{}, true},
                precision, trials, scratch, parallel);
  std::int32_t* starts = all.code.starts.as<std::int32_t>();
  for (std::int64_t row = 0; row <= rows; ++row) starts[row] = static_cast<std::int32_t>(row * k);
  for (std::int64_t i = 0; i < rows * k; ++i)
    latents.as<std::int32_t>()[i] = dead[latents.as<std::int32_t>()[i]];
}

}  // namespace

void select_dead(const DeadSelection& all, Precision precision, RoundingTrials& trials, Scratch& scratch,
                 const Parallel& parallel) {
  const std::int64_t latents = all.since.cols;
  Scratch::Lease lease(scratch, doubles_for<std::int32_t>(latents));
  auto* dead = aligned<std::int32_t>(lease.data());
  std::int64_t count = 0;
  for (std::int64_t latent = 0; latent < latents; ++latent) {
    dead[count] = static_cast<std::int32_t>(latent);
    count += all.since.as<double>()[latent] > all.limit ? 1 : 0;
  }
  *all.dead = static_cast<double>(count);
  std::fill_n(all.code.starts.as<std::int32_t>(), all.x.rows + 1, 0);
  if (count == 0) return;
  with_scalar(all.x.dtype, [&](auto s) {
    select_among<decltype(s)>(all, dead, count, precision, trials, scratch, parallel);
  });
}

}  // namespace fastsae::cpu
