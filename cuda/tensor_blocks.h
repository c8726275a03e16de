// A tile of a product on tensor cores, for one thread block: float factors with any strides are copied to shared
// memory some slabs ahead, rounded on their way into registers, and summed in float. The tile then lies in shared
// memory, where the kernel is run on it: so the code of an epilogue does not depend on how the sums were made.
//
// Cores are the instructions: tensor_cores.h on the device, an emulation in the tests.
#pragma once

#include <cstdint>

#include "blocks.h"

namespace fastsae::cuda {

// A square tile: 128 members, as 2 x 2 warps, each with its quarter of the tile.
template <int kTile, int kSlab>
struct TensorShape {
  static constexpr int tile = kTile, slab = kSlab, stages = 4, members = 128;
  static constexpr int quarter = tile / 2, high = quarter / 16, wide = quarter / 8;
  // Distances of lines in shared memory: the 32 lanes of a warp read from 32 banks.
  static constexpr int along_inner = slab + 4, along_outer = tile + 8;
  static constexpr int floats =
      tile * along_inner > slab* along_outer ? tile * along_inner : slab * along_outer;
  static constexpr int lanes = members / tile;  // of an epilogue's column
};
// Small tiles keep all multiprocessors busy; large ones read each element less often.
using SmallTile = TensorShape<32, 32>;
using LargeTile = TensorShape<64, 16>;

template <class Shape>
struct TensorState {
  std::uint32_t a[Shape::high][4], b[Shape::wide][2];
  float sum[Shape::high][Shape::wide][4];
};

template <class Shape>
union alignas(16) TensorShared {
  float factor[Shape::stages][2][Shape::floats];
  struct {
    float tile[Shape::tile][Shape::tile + 8];
    float part[kMostSums][Shape::lanes][Shape::tile];
  } end;
};

// A slab of a factor in shared memory: element (i, k).
struct Staged {
  const float* data;
  int outer, inner;
  FS_HD float at(int i, int k) const { return data[i * outer + k * inner]; }
};

// Lines of neighbours in memory, from the first that is wanted.
struct Lines {
  const float* data;
  std::int64_t stride, lines, length;  // as many as there are
  FS_HD const float* operator[](int line) const { return data + line * stride; }
};
struct ListedLines : Lines {
  const std::int32_t* which;
  FS_HD const float* operator[](int line) const { return data + which[line] * stride; }
};

// Begins to copy kLines lines of kLength floats, with zeros for what is not there.
template <class Shape, int kWidth, int kLines, int kLength, int kPitch, class Team, class From>
FS_HD void copy_lines(Team& team, int member, const From& from, float* to) {
  constexpr int kPieces = kLength / kWidth;
  FS_UNROLL
  for (int piece = member; piece < kLines * kPieces; piece += Shape::members) {
    const int line = piece / kPieces, at = piece % kPieces * kWidth;
    const std::int64_t left = line < from.lines ? from.length - at : 0;
    const int valid = left >= kWidth ? kWidth : left > 0 ? static_cast<int>(left) : 0;
    const float* source = valid > 0 ? from[line] + at : from.data;
    team.template copy<kWidth * 4>(to + line * kPitch + at, source, valid * 4);
  }
}

template <class Shape, int kLines, int kLength, int kPitch, class Team, class From>
FS_HD void copy_lines(Team& team, int member, const From& from, float* to) {
  if (from.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(from.data) % 16 == 0)
    copy_lines<Shape, 4, kLines, kLength, kPitch>(team, member, from, to);
  else
    copy_lines<Shape, 1, kLines, kLength, kPitch>(team, member, from, to);
}

// Of a factor with `count` outer elements: those from `first` on, and the inner ones from k0 on.
template <class Shape, class Team>
FS_HD void begin_slab(Team& team, int member, const Strided<float>& factor, std::int64_t first,
                      std::int64_t count, std::int64_t k0, std::int64_t inner, float* to) {
  const float* data = factor.data + first * factor.outer + k0 * factor.inner;
  if (factor.inner == 1) {
    const Lines lines{data, factor.outer, count - first, inner - k0};
    copy_lines<Shape, Shape::tile, Shape::slab, Shape::along_inner>(team, member, lines, to);
  } else {
    const Lines lines{data, factor.inner, inner - k0, count - first};
    copy_lines<Shape, Shape::slab, Shape::tile, Shape::along_outer>(team, member, lines, to);
  }
}

template <class Shape, class Team>
FS_HD void begin_slab(Team& team, int member, const ListedRows<float>& factor, std::int64_t first,
                      std::int64_t count, std::int64_t k0, std::int64_t inner, float* to) {
  const ListedLines lines{{factor.data + k0, factor.stride, count - first, inner - k0}, factor.rows + first};
  copy_lines<Shape, Shape::tile, Shape::slab, Shape::along_inner>(team, member, lines, to);
}

template <class Shape, class Rows>
FS_HD Staged staged(const Rows& factor, const float* data) {
  return factor.inner == 1 ? Staged{data, Shape::along_inner, 1} : Staged{data, 1, Shape::along_outer};
}

// Where a member's elements are, after "Matrix Fragments for mma" of the PTX ISA; both instructions have the same
// positions if inner ones count words.
template <class Shape>
struct Fragment {
  int row, col, group, thread;  // row and col: of its warp's quarter
  FS_HD explicit Fragment(int member)
      : row(member / 64 * Shape::quarter),
        col(member / 32 % 2 * Shape::quarter),
        group(member % 32 / 4),
        thread(member % 4) {}
};

// Adds up the tile and leaves it in shared.end.tile.
template <class Cores, class Shape, class Team, class Right>
FS_HD void sum_tile(Team& team, Strided<float> a, Right b, std::int64_t inner, Tile tile,
                    TensorShared<Shape>& shared) {
  using State = TensorState<Shape>;
  const std::int64_t slabs = (inner + Shape::slab - 1) / Shape::slab;
  const auto begin = [&](std::int64_t slab) {
    team.each([&](int member, State&) {
      if (slab >= slabs) return;
      const std::int64_t k0 = slab * Shape::slab;
      float (&to)[2][Shape::floats] = shared.factor[slab % Shape::stages];
      begin_slab<Shape>(team, member, a, tile.row, tile.rows, k0, inner, to[0]);
      begin_slab<Shape>(team, member, b, tile.col, tile.cols, k0, inner, to[1]);
    });
    team.commit();
  };
  FS_UNROLL
  for (int slab = 0; slab + 1 < Shape::stages; ++slab) begin(slab);
  for (std::int64_t slab = 0; slab < slabs; ++slab) {
    team.template arrive<Shape::stages - 2>();  // this slab is there, and all have left the one before it
    begin(slab + Shape::stages - 1);
    const Staged left = staged<Shape>(a, shared.factor[slab % Shape::stages][0]);
    const Staged right = staged<Shape>(b, shared.factor[slab % Shape::stages][1]);
    FS_UNROLL
    for (int k = 0; k < Shape::slab; k += Cores::depth) {
      team.each([&](int member, State& state) {
        const Fragment<Shape> at(member);
        FS_UNROLL
        for (int i = 0; i < Shape::high; ++i) {
          FS_UNROLL
          for (int r = 0; r < 4; ++r) {
            const int row = at.row + 16 * i + 8 * (r % 2) + at.group;
            state.a[i][r] = Cores::word(left, row, k + 4 * (r / 2) + at.thread);
          }
        }
        FS_UNROLL
        for (int j = 0; j < Shape::wide; ++j) {
          FS_UNROLL
          for (int r = 0; r < 2; ++r) {
            state.b[j][r] = Cores::word(right, at.col + 8 * j + at.group, k + 4 * r + at.thread);
          }
        }
      });
      team.warp([&](auto&& lanes) {
        FS_UNROLL
        for (int i = 0; i < Shape::high; ++i) {
          FS_UNROLL
          for (int j = 0; j < Shape::wide; ++j) Cores::multiply(lanes, i, j);
        }
      });
    }
  }
  team.template arrive<0>();
  team.phase([&](int member, State& state) {
    const Fragment<Shape> at(member);
    FS_UNROLL
    for (int i = 0; i < Shape::high; ++i) {
      FS_UNROLL
      for (int j = 0; j < Shape::wide; ++j) {
        FS_UNROLL
        for (int r = 0; r < 4; ++r) {
          const int row = at.row + 16 * i + 8 * (r / 2) + at.group;
          shared.end.tile[row][at.col + 8 * j + 2 * at.thread + r % 2] = state.sum[i][j][r];
        }
      }
    }
  });
}

// out = tile (+ out), with the kernel on each element. `partial` as in map_block.
template <class K, class Shape, class Team>
FS_HD void finish_tile(Team& team, K kernel, bool accumulate, Out<float> out, Tile tile,
                       TensorShared<Shape>& shared, double* partial) {
  static_assert(K::sums <= kMostSums);
  constexpr int kSums = K::sums > 0 ? K::sums : 1;
  constexpr int kAtOnce = 4;  // what the kernel reads for them is under way together
  using State = TensorState<Shape>;
  fetch(kernel);
  team.phase([&](int member, State&) {
    const int lane = member / Shape::tile, local = member % Shape::tile;
    const std::int64_t col = tile.col + local;
    float sum[kSums] = {};
    for (int first = lane; col < tile.cols && first < Shape::tile; first += kAtOnce * Shape::lanes) {
      float value[kAtOnce];
      FS_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        const std::int64_t wanted = tile.row + first + i * Shape::lanes;
        const bool inside = wanted < tile.rows;
        const std::int64_t row =
            inside ? wanted : tile.rows - 1;  // computed in vain, so that nothing branches
        float summand[kSums] = {};
        const float z = shared.end.tile[first + i * Shape::lanes][local];
        value[i] = kernel(row, col, accumulate && inside ? z + out.at(row, col) : z, summand);
        FS_UNROLL
        for (int k = 0; k < K::sums; ++k) sum[k] += inside ? summand[k] : 0.0f;
      }
      FS_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        const std::int64_t row = tile.row + first + i * Shape::lanes;
        if (row < tile.rows) out.put(row, col, value[i]);
      }
    }
    FS_UNROLL
    for (int k = 0; k < K::sums; ++k) shared.end.part[k][lane][local] = sum[k];
  });
  if (K::sums == 0 || partial == nullptr) return;
  team.phase([&](int member, State&) {
    const std::int64_t col = tile.col + member;
    if (member >= Shape::tile || col >= tile.cols) return;
    FS_UNROLL
    for (int k = 0; k < K::sums; ++k) {
      double sum = 0;
      for (int lane = 0; lane < Shape::lanes; ++lane)
        sum += static_cast<double>(shared.end.part[k][lane][member]);
      partial[k * tile.cols + col] = sum;
    }
  });
}

}  // namespace fastsae::cuda
