#include "cpu/images.h"

#include <algorithm>

#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

template <class S>
void unfold_rows(const Windows& w, const S* images, View<S> columns, std::int64_t first, std::int64_t last) {
  for (std::int64_t row = first; row < last; ++row) {
    const std::int64_t image = row / w.per_image(), window = row % w.per_image();
    const std::int64_t y0 = window / w.cols * w.stride - w.padding,
                       x0 = window % w.cols * w.stride - w.padding;
    S* to = columns.data + row * columns.stride;
    for (std::int64_t ky = 0; ky < w.kernel; ++ky) {
      for (std::int64_t kx = 0; kx < w.kernel; ++kx, to += w.channels) {
        const std::int64_t y = y0 + ky, x = x0 + kx;
        if (y < 0 || y >= w.height || x < 0 || x >= w.width)
          std::fill_n(to, w.channels, S(0));
        else
          std::copy_n(images + ((image * w.height + y) * w.width + x) * w.channels, w.channels, to);
      }
    }
  }
}

template <class S>
void fold_rows(const Windows& w, View<const S> columns, S* images, std::int64_t first, std::int64_t last) {
  for (std::int64_t pixel = first; pixel < last; ++pixel) {
    const std::int64_t image = pixel / (w.height * w.width), place = pixel % (w.height * w.width);
    const std::int64_t y = place / w.width + w.padding, x = place % w.width + w.padding;
    S* to = images + pixel * w.channels;
    std::fill_n(to, w.channels, S(0));
    for (std::int64_t ky = 0; ky < w.kernel; ++ky) {
      if (y < ky || (y - ky) % w.stride != 0 || (y - ky) / w.stride >= w.rows) continue;
      for (std::int64_t kx = 0; kx < w.kernel; ++kx) {
        if (x < kx || (x - kx) % w.stride != 0 || (x - kx) / w.stride >= w.cols) continue;
        const std::int64_t row = image * w.per_image() + (y - ky) / w.stride * w.cols + (x - kx) / w.stride;
        const S* from = columns.data + row * columns.stride + (ky * w.kernel + kx) * w.channels;
        for (std::int64_t c = 0; c < w.channels; ++c) to[c] += from[c];
      }
    }
  }
}

}  // namespace

void unfold(const Windows& windows, const Tensor& images, const Tensor& columns, std::int64_t first,
            std::int64_t last) {
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    unfold_rows<S>(windows, images.as<S>(), columns.view<S>(), first, last);
  });
}

void fold(const Windows& windows, const Tensor& columns, const Tensor& images, std::int64_t first,
          std::int64_t last) {
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    fold_rows<S>(windows, columns.view<const S>(), images.as<S>(), first, last);
  });
}

}  // namespace fastsae::cpu
