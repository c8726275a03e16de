// Windows over images: copied into rows, and added up again.
#pragma once

#include "backend/backend.h"

namespace fastsae::cpu {

// The windows of lines [first, last), of all images one after the other.
void unfold(const Windows& windows, const Tensor& images, const Tensor& columns, std::int64_t first,
            std::int64_t last);
// Lines [first, last) of pixels, of all images one after the other.
void fold(const Windows& windows, const Tensor& columns, const Tensor& images, std::int64_t first,
          std::int64_t last);

}  // namespace fastsae::cpu
