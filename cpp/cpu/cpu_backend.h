#pragma once

#include <memory>

#include "backend/backend.h"

namespace fastsae::cpu {

std::unique_ptr<Backend> make_cpu_backend(Precision precision, Poll poll);

}  // namespace fastsae::cpu
