#include "models/winners.h"

#include "kernels/list.h"
#include "models/layer.h"

namespace fastsae {

void Winners::declare(Arena& scratch, std::int64_t rows, const std::string& suffix, DType dtype) {
  if (!any()) return;
  if (shape_.positions() > 1) winner_ = &scratch.declare("winner" + suffix, rows, shape_.channels, dtype);
  if (of_batch_) turned_ = &scratch.declare("turned_winner" + suffix, shape_.channels, rows, dtype);
  place_ = &scratch.declare("place" + suffix, rows, shape_.channels, dtype);
}

void Winners::keep(Backend& backend, Tensor activation, const Tensor& weight) const {
  const std::int64_t rows = activation.rows, positions = shape_.positions(), channels = shape_.channels;
  const Tensor place = place_->slice_rows(0, rows);
  const Tensor maps = pixels(activation, shape_);
  with_scalar(activation.dtype, [&](auto s) {
    using S = decltype(s);
    Tensor winner = activation;  // of a unit: itself
    if (positions > 1) {
      winner = winner_->slice_rows(0, rows);
      backend.map(winner, as_kernel(MapWinner<S>{maps.as<S>(), place.as<S>(), positions, channels}), {});
    }
    if (of_batch_) {
      const Tensor turned = shaped(*turned_, channels, rows);
      backend.map(turned, as_kernel(Transposed<S>{winner.as<S>(), rows, channels}), {});
      const LifetimeWinner<S> kernel{turned.as<S>(), weight.as<S>(), rows, lifetime_, of_map_};
      backend.map(place, as_kernel(kernel), {});
    }
    backend.map(maps, as_kernel(KeepWinners<S>{place.as<S>(), positions, channels, of_map_}), {});
  });
}

}  // namespace fastsae
