// The algorithms of one thread block over windows of images: copied into rows, and added up again. What a row of the
// result depends on is found once for each row, and the way through its elements needs no division.
#pragma once

#include "blocks.h"

namespace fastsae::cuda {

// 256 members and as many rows as give each about eight elements.
struct WindowShape {
  static constexpr int members = 256, most_rows = 256, elements = 8 * members;
  static constexpr int rows(std::int64_t width) {
    if (width >= elements) return 1;
    const int fit = elements / static_cast<int>(width);
    return fit < most_rows ? fit : most_rows;
  }
};

// An element of rows of kernel x kernel pixels, by its digits.
struct WindowPlace {
  int row, ky, kx, channel;

  FS_HD static WindowPlace of(int element, int kernel, int channels) {
    const int pixel = element / channels, line = pixel / kernel;
    return {line / kernel, line % kernel, pixel % kernel, element % channels};
  }
  FS_HD void advance(const WindowPlace& by, int kernel, int channels) {
    channel += by.channel;
    kx += by.kx + carry(channel, channels);
    ky += by.ky + carry(kx, kernel);
    row += by.row + carry(ky, kernel);
  }

 private:
  FS_HD static int carry(int& digit, int base) {
    if (digit < base) return 0;
    digit -= base;
    return 1;
  }
};

struct UnfoldShared {
  struct Row {
    std::int64_t image;  // where its first element is
    int y, x;            // of the window's first pixel
  };
  Row row[WindowShape::most_rows];
};

// Rows [tile.row, tile.row + rows) of the columns.
template <class S, class Team>
FS_HD void unfold_block(Team& team, const Windows& windows, const S* images, Out<S> columns, Tile tile,
                        int rows, UnfoldShared& shared) {
  using Shape = WindowShape;
  const int kernel = static_cast<int>(windows.kernel), channels = static_cast<int>(windows.channels);
  const int height = static_cast<int>(windows.height), width = static_cast<int>(windows.width);
  const int here = tile.rows - tile.row < rows ? static_cast<int>(tile.rows - tile.row) : rows;
  team.phase([&](int member, NoState&) {
    if (member >= here) return;
    const std::int64_t image = (tile.row + member) / windows.per_image();
    const int window = static_cast<int>(tile.row + member - image * windows.per_image());
    const int across = static_cast<int>(windows.cols), down = window / across;
    const int stride = static_cast<int>(windows.stride), padding = static_cast<int>(windows.padding);
    shared.row[member] = {image * windows.height * windows.width * windows.channels, down * stride - padding,
                          (window - down * across) * stride - padding};
  });
  team.phase([&](int member, NoState&) {
    WindowPlace at = WindowPlace::of(member, kernel, channels);
    const WindowPlace step = WindowPlace::of(Shape::members, kernel, channels);
    for (; at.row < here; at.advance(step, kernel, channels)) {
      const UnfoldShared::Row& row = shared.row[at.row];
      const int y = row.y + at.ky, x = row.x + at.kx;
      const bool inside = y >= 0 && y < height && x >= 0 && x < width;
      const S value = inside ? images[row.image + (y * width + x) * channels + at.channel] : S(0);
      columns.put(tile.row + at.row, (at.ky * kernel + at.kx) * channels + at.channel, value);
    }
  });
}

struct FoldShared {
  struct Pixel {
    std::int64_t windows;  // of the images before
    int down, across;      // the last window with this pixel in it
    int ky, kx;            // where it is there
  };
  Pixel pixel[WindowShape::most_rows];
};

// Pixels [tile.row, tile.row + rows) of the images.
template <class S, class Team>
FS_HD void fold_block(Team& team, const Windows& windows, View<const S> columns, Out<S> images, Tile tile,
                      int rows, FoldShared& shared) {
  using Shape = WindowShape;
  const int kernel = static_cast<int>(windows.kernel), channels = static_cast<int>(windows.channels);
  const int stride = static_cast<int>(windows.stride), cols = static_cast<int>(windows.cols);
  const int here = tile.rows - tile.row < rows ? static_cast<int>(tile.rows - tile.row) : rows;
  team.phase([&](int member, NoState&) {
    if (member >= here) return;
    const std::int64_t pixels = windows.height * windows.width, image = (tile.row + member) / pixels;
    const int place = static_cast<int>(tile.row + member - image * pixels);
    const int width = static_cast<int>(windows.width), padding = static_cast<int>(windows.padding);
    const int y = place / width + padding, x = place % width + padding;
    const int lowest = static_cast<int>(windows.rows) - 1, rightmost = cols - 1;
    const int down = y / stride < lowest ? y / stride : lowest;
    const int across = x / stride < rightmost ? x / stride : rightmost;
    shared.pixel[member] = {image * windows.per_image(), down, across, y - down * stride,
                            x - across * stride};
  });
  // From one window with a pixel in it to the one before, and where the pixel is there.
  const std::int64_t left = std::int64_t{stride} * channels - columns.stride;
  team.phase([&](int member, NoState&) {
    WindowPlace at = WindowPlace::of(member, 1, channels);
    const WindowPlace step = WindowPlace::of(Shape::members, 1, channels);
    for (; at.row < here; at.advance(step, 1, channels)) {
      const FoldShared::Pixel& pixel = shared.pixel[at.row];
      S sum = 0;
      int ky = pixel.ky;
      for (int down = pixel.down; down >= 0 && ky < kernel; --down, ky += stride) {
        const S* from = &columns(pixel.windows + down * cols + pixel.across,
                                 (ky * kernel + pixel.kx) * channels + at.channel);
        int kx = pixel.kx;
        for (int across = pixel.across; across >= 0 && kx < kernel; --across, kx += stride, from += left)
          sum += *from;
      }
      images.put(tile.row + at.row, at.channel, sum);
    }
  });
}

}  // namespace fastsae::cuda
