// The algorithms of one thread block, without a word of CUDA: passes over a tile, and a tile of a product.
//
// Sums never use atomics: a block sums its tile in a fixed order and writes partial sums; add_parts adds those of
// all blocks in block order.
#pragma once

#include <cstdint>

#include "backend/backend.h"
#include "kernels/kernel.h"
#include "math/low_precision.h"
#include "team.h"

namespace fastsae::cuda {

struct Tile {
  std::int64_t row, col;    // of its first element
  std::int64_t rows, cols;  // of the whole matrix
};

// Where a block puts its elements: the tensor, and its shadow if it has one.
template <class S>
struct Out {
  View<S> view;
  Bf16* shadow;

  explicit Out(const Tensor& tensor) : Out(tensor.view<S>(), static_cast<Bf16*>(tensor.shadow)) {}
  FS_HD Out(View<S> elements, Bf16* copy) : view(elements), shadow(copy) {}
  FS_HD S at(std::int64_t row, std::int64_t col) const { return view(row, col); }
  FS_HD void put(std::int64_t row, std::int64_t col, S value) const {
    view(row, col) = value;
    if (shadow != nullptr) cast(row, col, value);
  }
  // Into the shadow alone.
  FS_HD void cast(std::int64_t row, std::int64_t col, S value) const {
    shadow[row * view.stride + col] = Bf16::round(static_cast<float>(value));
  }
};

template <class K>
FS_HD void fetch(K& kernel) {
  if constexpr (requires { kernel.load(); }) kernel.load();
}

template <class K>
FS_HD bool idle(const K& kernel) {
  if constexpr (requires { kernel.idle(); })
    return kernel.idle();
  else
    return false;
}

struct NoState {};

// Members lie along a row, as many as it has elements up to 32, and rows share the rest of them: of images with few
// channels no member is idle.
struct Lanes {
  int log;  // of the members along a row
  FS_HD explicit Lanes(std::int64_t cols) : log(0) {
    while (log < 5 && (1 << log) < cols) ++log;
  }
  FS_HD int along() const { return 1 << log; }
  FS_HD int row(int member) const { return member >> log; }
  FS_HD int col(int member) const { return member & (along() - 1); }
};

// A pass that sums columns, or sums nothing: 256 members for 256 rows of up to 32 columns.
struct MapShape {
  static constexpr int cols = 32, members = 256, rows = 256;
};

template <class K>
struct MapShared {
  typename K::Scalar part[K::sums > 0 ? K::sums : 1][MapShape::members];
};

// `partial` gets this block's sums: [sums x all columns] doubles of its row of blocks.
template <class K, class Team, class S = typename K::Scalar>
FS_HD void map_block(Team& team, K kernel, Out<S> out, Tile tile, MapShared<K>& shared, double* partial) {
  constexpr int kSums = K::sums > 0 ? K::sums : 1;
  fetch(kernel);
  if (idle(kernel)) return;
  const Lanes lanes(tile.cols);
  const int at_once = MapShape::members >> lanes.log;
  team.phase([&](int member, NoState&) {
    const std::int64_t col = tile.col + lanes.col(member);
    S sum[kSums] = {};
    if (col < tile.cols) {
      for (int i = lanes.row(member); i < MapShape::rows && tile.row + i < tile.rows; i += at_once) {
        const std::int64_t row = tile.row + i;
        S summand[kSums] = {};
        out.put(row, col, kernel(row, col, out.at(row, col), summand));
        FS_UNROLL
        for (int k = 0; k < K::sums; ++k) sum[k] += summand[k];
      }
    }
    FS_UNROLL
    for (int k = 0; k < K::sums; ++k) shared.part[k][member] = sum[k];
  });
  if (K::sums == 0 || partial == nullptr) return;
  team.phase([&](int member, NoState&) {
    const std::int64_t col = tile.col + member;
    if (member >= lanes.along() || col >= tile.cols) return;
    FS_UNROLL
    for (int k = 0; k < K::sums; ++k) {
      double sum = 0;
      for (int i = member; i < MapShape::members; i += lanes.along())
        sum += static_cast<double>(shared.part[k][i]);
      partial[k * tile.cols + col] = sum;
    }
  });
}

// A pass that sums rows: 256 members, where rows are long 32 of them for each.
struct RowShape {
  static constexpr int members = 256;
  FS_HD static int rows(std::int64_t cols) { return members >> Lanes(cols).log; }
};

template <class K>
struct RowShared {
  typename K::Scalar part[RowShape::members];
};

template <class K, class Team, class S = typename K::Scalar>
FS_HD void row_block(Team& team, K kernel, Out<S> out, Tile tile, RowShared<K>& shared, double* sums) {
  static_assert(K::sums == 1);
  fetch(kernel);
  const Lanes lanes(tile.cols);
  team.phase([&](int member, NoState&) {
    const std::int64_t row = tile.row + lanes.row(member);
    S sum = 0;
    if (row < tile.rows) {
      for (std::int64_t col = lanes.col(member); col < tile.cols; col += lanes.along()) {
        S summand;
        out.put(row, col, kernel(row, col, out.at(row, col), &summand));
        sum += summand;
      }
    }
    shared.part[member] = sum;
  });
  team.phase([&](int member, NoState&) {
    if (member >= RowShape::rows(tile.cols) || tile.row + member >= tile.rows) return;
    double sum = 0;
    for (int i = 0; i < lanes.along(); ++i)
      sum += static_cast<double>(shared.part[member * lanes.along() + i]);
    sums[tile.row + member] = sum;
  });
}

// A factor of a product by its two strides: element (i, k) is data[i * outer + k * inner].
template <class S>
struct Strided {
  const S* data;
  std::int64_t outer, inner;
  FS_HD S at(std::int64_t i, std::int64_t k) const { return data[i * outer + k * inner]; }
};

// Some rows of a matrix.
template <class S>
struct ListedRows {
  const S* data;
  std::int64_t stride;
  const std::int32_t* rows;
  static constexpr std::int64_t inner = 1;
  FS_HD S at(std::int64_t i, std::int64_t k) const { return data[rows[i] * stride + k]; }
};

// Element (i, k) of the left factor, or (j, k) of the right one.
template <class S>
Strided<S> strided(const Factor& factor, bool left) {
  const bool outer_is_row = left != factor.transposed;
  return {factor.tensor.as<S>(), outer_is_row ? factor.tensor.stride : 1,
          outer_is_row ? 1 : factor.tensor.stride};
}

// The epilogue of a product that has none.
template <class S>
struct Keep {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  FS_HD S operator()(std::int64_t, std::int64_t, S z, S*) const { return z; }
};

// Whether products end with a kernel; others follow as a pass. One with many sums would fill a tile's shared memory.
inline constexpr int kMostSums = 2;
template <class K>
inline constexpr bool fuses = K::epilogue && K::pass != Pass::row_sum && K::sums <= kMostSums;

// A 64 x 64 tile of a product: 256 members, 4 x 4 outputs each, the inner dimension in slabs of 16.
struct ProductShape {
  static constexpr int tile = 64, slab = 16, each = 4, side = tile / each, members = side * side;
};

template <class S>
struct ProductState {
  S sum[ProductShape::each][ProductShape::each];
};

template <class K, class S = typename K::Scalar>
struct ProductShared {
  S a[ProductShape::slab][ProductShape::tile + 1];
  S b[ProductShape::slab][ProductShape::tile + 1];
  S part[K::sums > 0 ? K::sums : 1][ProductShape::side][ProductShape::tile];
};

// Stages factor elements [first, first + 64) x [k0, k0 + 16): neighbours in memory go to neighbouring members.
template <class Rows, class S>
FS_HD void stage(int member, const Rows& factor, std::int64_t first, std::int64_t count, std::int64_t k0,
                 std::int64_t inner, S (&to)[ProductShape::slab][ProductShape::tile + 1]) {
  for (int i = member; i < ProductShape::tile * ProductShape::slab; i += ProductShape::members) {
    const int k = factor.inner == 1 ? i % ProductShape::slab : i / ProductShape::tile;
    const int j = factor.inner == 1 ? i / ProductShape::slab : i % ProductShape::tile;
    const bool inside = first + j < count && k0 + k < inner;
    to[k][j] = inside ? factor.at(first + j, k0 + k) : S(0);
  }
}

// out = A B (+ out), then the kernel on each element while it is in a register.
template <class K, class Team, class Right, class S = typename K::Scalar>
FS_HD void product_block(Team& team, K kernel, Strided<S> a, Right b, std::int64_t inner, bool accumulate,
                         Out<S> out, Tile tile, ProductShared<K>& shared, double* partial) {
  using Shape = ProductShape;
  fetch(kernel);
  for (std::int64_t k0 = 0; k0 < inner; k0 += Shape::slab) {
    team.phase([&](int member, ProductState<S>&) {
      stage(member, a, tile.row, tile.rows, k0, inner, shared.a);
      stage(member, b, tile.col, tile.cols, k0, inner, shared.b);
    });
    team.phase([&](int member, ProductState<S>& state) {
      const int r = member / Shape::side, c = member % Shape::side;
      FS_UNROLL
      for (int k = 0; k < Shape::slab; ++k) {
        FS_UNROLL
        for (int i = 0; i < Shape::each; ++i) {
          FS_UNROLL
          for (int j = 0; j < Shape::each; ++j) {
            state.sum[i][j] += shared.a[k][r + i * Shape::side] * shared.b[k][c + j * Shape::side];
          }
        }
      }
    });
  }
  team.phase([&](int member, ProductState<S>& state) {
    const int r = member / Shape::side, c = member % Shape::side;
    FS_UNROLL
    for (int j = 0; j < Shape::each; ++j) {
      const int local = c + j * Shape::side;
      const std::int64_t col = tile.col + local;
      S sum[K::sums > 0 ? K::sums : 1] = {};
      FS_UNROLL
      for (int i = 0; i < Shape::each; ++i) {
        const std::int64_t row = tile.row + r + i * Shape::side;
        if (row >= tile.rows || col >= tile.cols) continue;
        S summand[K::sums > 0 ? K::sums : 1] = {};
        const S z = state.sum[i][j] + (accumulate ? out.at(row, col) : S(0));
        out.put(row, col, kernel(row, col, z, summand));
        FS_UNROLL
        for (int k = 0; k < K::sums; ++k) sum[k] += summand[k];
      }
      FS_UNROLL
      for (int k = 0; k < K::sums; ++k) shared.part[k][r][local] = sum[k];
    }
  });
  if (K::sums == 0 || partial == nullptr) return;
  team.phase([&](int member, ProductState<S>&) {
    const std::int64_t col = tile.col + member;
    if (member >= Shape::tile || col >= tile.cols) return;
    FS_UNROLL
    for (int k = 0; k < K::sums; ++k) {
      double sum = 0;
      for (int r = 0; r < Shape::side; ++r) sum += static_cast<double>(shared.part[k][r][member]);
      partial[k * tile.cols + col] = sum;
    }
  });
}

// into[i] = (into[i] +) the sum of `parts` partial sums that lie `stride` apart, in their order.
FS_HD void add_parts(std::int64_t i, const double* partial, std::int64_t parts, std::int64_t stride,
                     bool accumulate, double* into) {
  double sum = accumulate ? into[i] : 0.0;
  for (std::int64_t part = 0; part < parts; ++part) sum += partial[part * stride + i];
  into[i] = sum;
}

// The sum of a matrix of doubles: 1024 members, each every 1024th of a line; then 32 of them add up 32 each.
struct TotalShape {
  static constexpr int members = 1024, groups = 32;
};

struct TotalShared {
  double part[TotalShape::members];
  double whole[TotalShape::groups];
};

template <class Team>
FS_HD void total_block(Team& team, View<const double> of, std::int64_t rows, std::int64_t cols, double scale,
                       TotalShared& shared, double* to) {
  using Shape = TotalShape;
  const bool one_line = of.stride == cols;
  const std::int64_t lines = one_line ? 1 : rows, length = one_line ? rows * cols : cols;
  team.phase([&](int member, NoState&) {
    double sum = 0;
    for (std::int64_t line = 0; line < lines; ++line) {
      for (std::int64_t i = member; i < length; i += Shape::members) sum += of(line, i);
    }
    shared.part[member] = sum;
  });
  team.phase([&](int member, NoState&) {
    if (member >= Shape::groups) return;
    double sum = 0;
    FS_UNROLL
    for (int i = member; i < Shape::members; i += Shape::groups) sum += shared.part[i];
    shared.whole[member] = sum;
  });
  team.phase([&](int member, NoState&) {
    if (member != 0) return;
    double sum = 0;
    FS_UNROLL
    for (int i = 0; i < Shape::groups; ++i) sum += shared.whole[i];
    *to += scale * sum;
  });
}

}  // namespace fastsae::cuda
