#include "models/corruption.h"

#include <cmath>

#include "core/error.h"
#include "kernels/list.h"

namespace fastsae {

Corruption::Corruption(const ModelSpec& spec)
    : spec_(spec.corruption), n_features_(spec.n_features), dtype_(spec.dtype) {
  const bool replaces = spec_.kind == "masking" || spec_.kind == "salt_and_pepper";
  FS_REQUIRE(replaces || spec_.kind == "gaussian" || !exists(), "corruption: unknown name '", spec_.kind,
             "'");
  FS_REQUIRE(replaces || !has_emphasis(), "emphasis needs corruption 'masking' or 'salt_and_pepper'");
  FS_REQUIRE(!has_emphasis() || spec.n_outputs == n_features_, "emphasis needs as many outputs as features");
}

void Corruption::declare_scratch(Arena& scratch, std::int64_t rows, bool shadowed) {
  if (!exists()) return;
  input_ = &scratch.declare("corrupted", rows, n_features_, dtype_, shadowed);
  drawn_ = shadowed ? &scratch.declare("drawn", rows, n_features_, dtype_) : input_;
  if (has_emphasis()) emphasis_ = &scratch.declare("emphasis", rows, n_features_, dtype_);
}

void Corruption::draw(Backend& backend, const Batch& batch, const StepScalars* step) const {
  const Tensor drawn = drawn_->slice_rows(0, batch.rows());
  Tensor first_run = drawn;
  first_run.cols = (n_features_ + 3) / 4;
  with_scalar(dtype_, [&](auto s) {
    using S = decltype(s);
    const Noise<S> noise{
        batch.x.view<const S>(), drawn.view<S>(), batch.numbers.as<double>(), step, n_features_,
        first_run.cols};
    if (spec_.kind == "gaussian")
      return backend.map(first_run, as_kernel(AddNormal<S>{noise, static_cast<S>(spec_.level)}), {});
    const bool masks = spec_.kind == "masking";
    const View<S> weight = has_emphasis() ? emphasis(batch).view<S>() : View<S>{nullptr, 0};
    const Replace<S> replace{noise,
                             static_cast<std::uint32_t>(std::llround(spec_.level * 0x1p31)),
                             static_cast<S>(masks ? 0 : spec_.low),
                             static_cast<S>(masks ? 0 : spec_.high),
                             weight,
                             static_cast<S>(spec_.emphasis),
                             static_cast<S>(spec_.rest)};
    backend.map(first_run, as_kernel(replace), {});
  });
  if (drawn_ != input_) backend.copy(input(batch), drawn);
}

}  // namespace fastsae
