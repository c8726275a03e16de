// A Gaussian code is two stages: a dense one with two outputs for each latent, and one that draws.
#pragma once

#include <memory>

#include "models/layer.h"

namespace fastsae {

LayerSpec heads_of(const LayerSpec& gaussian);
LayerSpec sampling_of(const LayerSpec& gaussian);
std::unique_ptr<Layer> make_sampling(const LayerSpec& spec);

// Log-variances into the interval that codes are drawn with; in place, [rows x 2 units].
void clamp_moments(Backend& backend, Tensor moments);

}  // namespace fastsae
