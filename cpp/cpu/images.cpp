#include "cpu/images.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

// The numbers of a line of pixels that a window covers lie side by side, in the image as in the columns: a run.
struct Runs {
  std::int64_t width;  // numbers of a line
  std::int64_t length, step,
      first;                  // of a run; from one window's to the next one's; where the first one begins
  std::int64_t count;         // windows of a line
  std::int64_t inner, outer;  // the windows [inner, outer) lie inside of the line

  explicit Runs(const Windows& w)
      : width(w.width * w.channels),
        length(w.kernel * w.channels),
        step(w.stride * w.channels),
        first(-w.padding * w.channels),
        count(w.cols) {
    const std::int64_t before = (w.padding + w.stride - 1) / w.stride, room = width - length - first;
    outer = room < 0 ? 0 : std::min(count, room / step + 1);
    inner = std::min(before, outer);
  }
  std::int64_t at(std::int64_t window) const { return first + window * step; }
};

// Calls body(a, b, length) for `count` pairs of runs. Short runs, as those of a single channel are, have loops of
// their own.
template <class A, class B, class Body>
void for_runs(A* a, std::int64_t a_step, B* b, std::int64_t b_step, std::int64_t count, std::int64_t length,
              const Body& body) {
  const auto each = [&](auto known) {
    for (std::int64_t i = 0; i < count; ++i) body(a + i * a_step, b + i * b_step, known);
  };
  if (length == 2) return each(std::integral_constant<std::int64_t, 2>{});
  if (length == 3) return each(std::integral_constant<std::int64_t, 3>{});
  if (length == 5) return each(std::integral_constant<std::int64_t, 5>{});
  each(length);
}

// One line of windows.
template <class S>
void unfold_line(const Windows& w, const Runs& runs, const S* image, std::int64_t line, S* to,
                 std::int64_t to_stride) {
  for (std::int64_t ky = 0; ky < w.kernel; ++ky, to += runs.length) {
    const std::int64_t y = line * w.stride - w.padding + ky;
    if (y < 0 || y >= w.height) {
      for (std::int64_t col = 0; col < runs.count; ++col)
        std::fill_n(to + col * to_stride, runs.length, S(0));
      continue;
    }
    const S* from = image + y * runs.width;
    const auto across_an_end = [&](std::int64_t col) {
      for (std::int64_t i = 0; i < runs.length; ++i) {
        const std::int64_t x = runs.at(col) + i;
        to[col * to_stride + i] = x >= 0 && x < runs.width ? from[x] : S(0);
      }
    };
    for (std::int64_t col = 0; col < runs.inner; ++col) across_an_end(col);
    for_runs(from + runs.at(runs.inner), runs.step, to + runs.inner * to_stride, to_stride,
             runs.outer - runs.inner, runs.length,
             [](const S* __restrict source, S* __restrict run, auto length) {
               if (length > 64) {
                 std::memcpy(run, source, static_cast<std::size_t>(length) * sizeof(S));
                 return;
               }
               for (std::int64_t i = 0; i < length; ++i) run[i] = source[i];
             });
    for (std::int64_t col = runs.outer; col < runs.count; ++col) across_an_end(col);
  }
}

// One line of pixels: the runs that end in it, added in the order of their windows.
template <class S>
void fold_line(const Windows& w, const Runs& runs, const S* columns, std::int64_t stride, std::int64_t y,
               S* line) {
  const std::int64_t padded = y + w.padding;
  std::fill_n(line, runs.width, S(0));
  for (std::int64_t ky = padded % w.stride; ky < w.kernel && ky <= padded; ky += w.stride) {
    const std::int64_t row = (padded - ky) / w.stride;
    if (row >= w.rows) continue;
    const S* from = columns + row * w.cols * stride + ky * runs.length;
    const auto across_an_end = [&](std::int64_t col) {
      for (std::int64_t i = 0; i < runs.length; ++i) {
        const std::int64_t x = runs.at(col) + i;
        if (x >= 0 && x < runs.width) line[x] += from[col * stride + i];
      }
    };
    for (std::int64_t col = 0; col < runs.inner; ++col) across_an_end(col);
    for_runs(from + runs.inner * stride, stride, line + runs.at(runs.inner), runs.step,
             runs.outer - runs.inner, runs.length,
             [](const S* __restrict run, S* __restrict to, auto length) {
               for (std::int64_t i = 0; i < length; ++i) to[i] += run[i];
             });
    for (std::int64_t col = runs.outer; col < runs.count; ++col) across_an_end(col);
  }
}

}  // namespace

void unfold(const Windows& w, const Tensor& images, const Tensor& columns, std::int64_t first,
            std::int64_t last) {
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    const Runs runs(w);
    for (std::int64_t line = first; line < last; ++line) {
      const std::int64_t image = line / w.rows;
      unfold_line<S>(w, runs, images.as<S>() + image * w.height * w.width * w.channels, line - image * w.rows,
                     columns.as<S>() + line * w.cols * columns.stride, columns.stride);
    }
  });
}

void fold(const Windows& w, const Tensor& columns, const Tensor& images, std::int64_t first,
          std::int64_t last) {
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    const Runs runs(w);
    for (std::int64_t line = first; line < last; ++line) {
      const std::int64_t image = line / w.height;
      fold_line<S>(w, runs, columns.as<S>() + image * w.per_image() * columns.stride, columns.stride,
                   line - image * w.height, images.as<S>() + line * w.width * w.channels);
    }
  });
}

}  // namespace fastsae::cpu
