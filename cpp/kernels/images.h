// Passes over the windows of a pool, and what undoes them.
#pragma once

#include "kernels/kernel.h"

namespace fastsae {

// Windows of `size` x `size` pixels side by side, `rows` down and `cols` across an image. What is left of an image
// beyond them belongs to none.
struct PoolWindows {
  std::int64_t height, width, rows, cols, size;

  // A window, and its first pixel.
  FS_HD std::int64_t first_pixel(std::int64_t window) const {
    const std::int64_t line = window / cols, image = line / rows;
    return (image * height + (line - image * rows) * size) * width + (window - line * cols) * size;
  }
  // A pixel's window, or -1, and its place in it.
  FS_HD std::int64_t window(std::int64_t pixel, std::int64_t& place) const {
    const std::int64_t line = pixel / width, image = line / height;
    const std::int64_t y = line - image * height, x = pixel - line * width;
    const std::int64_t row = y / size, col = x / size;
    place = (y - row * size) * size + (x - col * size);
    return row < rows && col < cols ? (image * rows + row) * cols + col : -1;
  }
};

// The first of the largest of each window and channel, or NaN; and its place, counted in reading order.
template <class S>
struct MaxPool {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* from;  // [pixels x channels]
  S* places;      // [windows x channels]
  PoolWindows windows;
  std::int64_t channels;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const S* at = from + windows.first_pixel(row) * channels + col;
    S best = *at;
    std::int64_t chosen = 0, place = 0;
    for (std::int64_t y = 0; y < windows.size; ++y, at += windows.width * channels) {
      for (std::int64_t x = 0; x < windows.size; ++x, ++place) {
        const S value = at[x * channels];
        const bool better = value > best || value != value;
        best = better ? value : best;
        chosen = better ? place : chosen;
      }
    }
    places[row * channels + col] = static_cast<S>(chosen);
    return best;
  }
};

// What stands at the places that a max pool has chosen.
template <class S>
struct TakeMaxima {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* from;    // [pixels x channels]
  const S* places;  // [windows x channels]
  PoolWindows windows;
  std::int64_t channels;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const std::int64_t place = static_cast<std::int64_t>(places[row * channels + col]);
    const std::int64_t y = place / windows.size, x = place - y * windows.size;
    return from[(windows.first_pixel(row) + y * windows.width + x) * channels + col];
  }
};

// A window's number at its chosen place, 0 elsewhere: the transpose of TakeMaxima.
template <class S>
struct PutMaxima {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* from;    // [windows x channels]
  const S* places;  // [windows x channels]
  PoolWindows windows;
  std::int64_t channels;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    std::int64_t place;
    const std::int64_t window = windows.window(row, place);
    if (window < 0) return S(0);
    const std::int64_t at = window * channels + col;
    return places[at] == static_cast<S>(place) ? from[at] : S(0);
  }
};

// The sum of each window, times a factor.
template <class S>
struct SumWindows {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* from;  // [pixels x channels]
  PoolWindows windows;
  std::int64_t channels;
  S factor;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const S* at = from + windows.first_pixel(row) * channels + col;
    S sum = S(0);
    for (std::int64_t y = 0; y < windows.size; ++y, at += windows.width * channels) {
      for (std::int64_t x = 0; x < windows.size; ++x) sum += at[x * channels];
    }
    return factor * sum;
  }
};

// A window's number times a factor at each of its pixels, 0 outside of all: the transpose of SumWindows.
template <class S>
struct SpreadWindows {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const S* from;  // [windows x channels]
  PoolWindows windows;
  std::int64_t channels;
  S factor;
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    std::int64_t place;
    const std::int64_t window = windows.window(row, place);
    return window < 0 ? S(0) : factor * from[window * channels + col];
  }
};

}  // namespace fastsae
