// The algorithms of one thread block over rows that came from elsewhere and lie in the device's memory: taking them in
// an order, in the tensor's own type, and looking for one that cannot be used.
#pragma once

#include "backend/convert.h"
#include "blocks.h"

namespace fastsae::cuda {

// Rows in memory, `stride` bytes apart, in an order or as they are.
template <class From>
struct OrderedRows {
  const std::byte* data;
  std::int64_t stride;
  const std::int64_t* order;

  OrderedRows(const RowSource& source, const std::int64_t* rows)
      : data(static_cast<const std::byte*>(source.data)), stride(source.stride_bytes), order(rows) {}
  FS_HD const From* row(std::int64_t index) const {
    return reinterpret_cast<const From*>(data + (order == nullptr ? index : order[index]) * stride);
  }
};

// 256 members: 8 rows x 32 lanes, each lane every 32nd column, four of them on the way at once.
struct GatherShape {
  static constexpr int rows = 8, lanes = 32, members = rows * lanes, ahead = 4;
};

template <class From, class S, class Team>
FS_HD void gather_block(Team& team, OrderedRows<From> from, Out<S> out, Tile tile) {
  using Shape = GatherShape;
  team.phase([&](int member, NoState&) {
    const std::int64_t row = tile.row + member / Shape::lanes;
    if (row >= tile.rows) return;
    const From* source = from.row(row);
    for (std::int64_t col = member % Shape::lanes; col < tile.cols; col += Shape::lanes * Shape::ahead) {
      From value[Shape::ahead];
      FS_UNROLL
      for (int i = 0; i < Shape::ahead; ++i) {
        if (col + i * Shape::lanes < tile.cols) value[i] = source[col + i * Shape::lanes];
      }
      FS_UNROLL
      for (int i = 0; i < Shape::ahead; ++i) {
        if (col + i * Shape::lanes < tile.cols) out.put(row, col + i * Shape::lanes, element_as<S>(value[i]));
      }
    }
  });
}

// 256 members: 8 rows x 32 lanes, 64 rows for a block.
struct SearchShape {
  static constexpr int at_once = 8, lanes = 32, members = at_once * lanes, rows = 64;
};

struct SearchShared {
  std::int64_t first[SearchShape::members];  // row, or the number of all rows
};

// found[block] = its first row with NaN or a number outside [low, high], or the number of all rows.
template <class From, class Team>
FS_HD void search_block(Team& team, OrderedRows<From> from, double low, double high, Tile tile,
                        SearchShared& shared, std::int64_t* found) {
  using Shape = SearchShape;
  team.phase([&](int member, NoState&) {
    std::int64_t first = tile.rows;
    for (int i = member / Shape::lanes; i < Shape::rows && tile.row + i < first; i += Shape::at_once) {
      const From* source = from.row(tile.row + i);
      for (std::int64_t col = member % Shape::lanes; col < tile.cols; col += Shape::lanes) {
        if (outside(source[col], low, high)) first = tile.row + i;
      }
    }
    shared.first[member] = first;
  });
  team.phase([&](int member, NoState&) {
    if (member != 0) return;
    std::int64_t first = tile.rows;
    for (const std::int64_t row : shared.first) first = row < first ? row : first;
    *found = first;
  });
}

}  // namespace fastsae::cuda
