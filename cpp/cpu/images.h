// Windows over images: copied into rows, and added up again.
#pragma once

#include "backend/backend.h"

namespace fastsae::cpu {

// Rows [first, last) of the columns.
void unfold(const Windows& windows, const Tensor& images, const Tensor& columns, std::int64_t first,
            std::int64_t last);
// Rows [first, last) of the images' pixels.
void fold(const Windows& windows, const Tensor& columns, const Tensor& images, std::int64_t first,
          std::int64_t last);

}  // namespace fastsae::cpu
