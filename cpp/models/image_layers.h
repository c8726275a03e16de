// The kinds of layers that read or make images.
#pragma once

#include "models/layer.h"

namespace fastsae {

// conv            windows of the input times W' with W of [channels x kernel * kernel * channels of the input]
// conv_transpose  the input times W of [its channels x kernel * kernel * channels], added up in windows of the output
std::unique_ptr<Layer> make_convolution(const LayerSpec& spec);
std::unique_ptr<Layer> make_transposed_convolution(const LayerSpec& spec);

// max_pool, mean_pool       one number for each window of kernel x kernel pixels
// max_unpool, mean_unpool   their transposes; the maxima go to the places that another layer keeps
// upsample                  each pixel repeated in a window
std::unique_ptr<Layer> make_max_pool(const LayerSpec& spec);
std::unique_ptr<Layer> make_max_unpool(const LayerSpec& spec);
std::unique_ptr<Layer> make_window_sum(const LayerSpec& spec, double factor);
std::unique_ptr<Layer> make_window_spread(const LayerSpec& spec, double factor);

}  // namespace fastsae
