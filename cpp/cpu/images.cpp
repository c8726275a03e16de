#include "cpu/images.h"

#include <algorithm>
#include <cstring>

#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

// The numbers of a line of pixels that a window covers lie side by side, in the image as in the columns: a run. Those of
// a line beyond its ends are the border.
struct Runs {
  std::int64_t length, step,
      first;  // of a run; from one window's to the next one's; where the first one begins

  explicit Runs(const Windows& w)
      : length(w.kernel * w.channels), step(w.stride * w.channels), first(-w.padding * w.channels) {}
};

// A copy without a call: runs are short.
template <class S>
void copy_run(const S* from, std::int64_t count, S* to) {
  if (count > 64) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(S));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) to[i] = from[i];
}

// One line of windows.
template <class S>
void unfold_line(const Windows& w, const S* image, std::int64_t line, S* to, std::int64_t to_stride) {
  const Runs runs(w);
  const std::int64_t width = w.width * w.channels;
  for (std::int64_t ky = 0; ky < w.kernel; ++ky) {
    const std::int64_t y = line * w.stride - w.padding + ky;
    const S* from = image + y * width;
    S* run = to + ky * runs.length;
    for (std::int64_t col = 0, x = runs.first; col < w.cols; ++col, x += runs.step, run += to_stride) {
      if (y < 0 || y >= w.height) {
        std::fill_n(run, runs.length, S(0));
      } else if (x >= 0 && x + runs.length <= width) {
        copy_run(from + x, runs.length, run);
      } else {
        const std::int64_t begin = std::clamp<std::int64_t>(-x, 0, runs.length);
        const std::int64_t end = std::clamp<std::int64_t>(width - x, begin, runs.length);
        std::fill_n(run, begin, S(0));
        copy_run(from + x + begin, end - begin, run + begin);
        std::fill_n(run + end, runs.length - end, S(0));
      }
    }
  }
}

// One line of pixels: the runs that end in it, added in the order of their windows.
template <class S>
void fold_line(const Windows& w, const S* columns, std::int64_t stride, std::int64_t y, S* line) {
  const Runs runs(w);
  const std::int64_t width = w.width * w.channels, padded = y + w.padding;
  std::fill_n(line, width, S(0));
  for (std::int64_t ky = padded % w.stride; ky < w.kernel && ky <= padded; ky += w.stride) {
    const std::int64_t row = (padded - ky) / w.stride;
    if (row >= w.rows) continue;
    const S* run = columns + row * w.cols * stride + ky * runs.length;
    for (std::int64_t col = 0, x = runs.first; col < w.cols; ++col, x += runs.step, run += stride) {
      const std::int64_t begin = std::max<std::int64_t>(-x, 0), end = std::min(width - x, runs.length);
      S* to = line + x;
#pragma GCC ivdep
      for (std::int64_t i = begin; i < end; ++i) to[i] += run[i];
    }
  }
}

}  // namespace

void unfold(const Windows& w, const Tensor& images, const Tensor& columns, std::int64_t first,
            std::int64_t last) {
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    for (std::int64_t line = first; line < last; ++line) {
      const std::int64_t image = line / w.rows;
      unfold_line<S>(w, images.as<S>() + image * w.height * w.width * w.channels, line - image * w.rows,
                     columns.as<S>() + line * w.cols * columns.stride, columns.stride);
    }
  });
}

void fold(const Windows& w, const Tensor& columns, const Tensor& images, std::int64_t first,
          std::int64_t last) {
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    for (std::int64_t line = first; line < last; ++line) {
      const std::int64_t image = line / w.height;
      fold_line<S>(w, columns.as<S>() + image * w.per_image() * columns.stride, columns.stride,
                   line - image * w.height, images.as<S>() + line * w.width * w.channels);
    }
  });
}

}  // namespace fastsae::cpu
