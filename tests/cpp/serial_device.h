// The block algorithms of the CUDA backend, played by one thread, as a backend: like a GPU it reads nothing between
// steps, and replays the calls that a step made when its key came first.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace fastsae::cuda {

inline constexpr std::int64_t kStepsInFlight = 4;

std::unique_ptr<Backend> serial_device();

}  // namespace fastsae::cuda
