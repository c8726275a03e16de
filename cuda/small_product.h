// Products of matrices in shared memory, and the dealing out of work to a team.
#pragma once

#include "small_layout.h"

namespace fastsae::cuda {

// A matrix in shared memory. Rows and columns are filled up with zeros to whole tiles, so that products need no bounds.
template <class S>
struct Matrix {
  S* data;
  int rows, cols, stride;
  FS_HD S& operator()(int row, int col) const { return data[row * stride + col]; }
  FS_HD View<const S> view() const { return {data, stride}; }
};

// Deals items out to the members, each list going on where the last one stopped.
struct Deal {
  int at;
  template <class F>
  FS_HD void operator()(int count, const F& f) {
    int item = at;
    for (; item < count; item += SmallTeam::members) f(item);
    at = item - count;
  }
};

// Calls f with the kernel as what it is among the types of the list.
template <class K, class F>
FS_HD bool with_kernel_if(const Kernel& kernel, const F& f) {
  if (kernel.index != IndexOf<K, KernelList>::value) return false;
  K typed;
  memcpy(&typed, kernel.bytes, sizeof(K));
  f(typed);
  return true;
}
template <class... Ks, class F>
FS_HD void with_kernel(TypeList<Ks...>, const Kernel& kernel, const F& f) {
  (void)(with_kernel_if<Ks>(kernel, f) || ...);
}

template <class S>
struct alignas(16) Four {
  S value[4];
};

// A factor of a product in shared memory: element (i, k) is row i, column k, or row k, column i if kTransposed.
// Members beside each other take rows beside each other, or columns four apart: neither meets in a bank.
template <class S, bool kTransposed>
struct SmallFactor {
  Matrix<S> of;
  FS_HD int count() const { return kTransposed ? of.cols : of.rows; }
  FS_HD int tiles() const { return (count() + SmallTeam::each - 1) / SmallTeam::each; }
  FS_HD int index(int tile, int i) const { return first(tile) + i * step(); }
  // The tile's indices: first, first + step, ... before end.
  FS_HD int first(int tile) const { return kTransposed ? tile * SmallTeam::each : tile; }
  FS_HD int step() const { return kTransposed ? 1 : tiles(); }
  FS_HD int end(int tile) const {
    const int whole = first(tile) + SmallTeam::each;
    return kTransposed && whole < count() ? whole : count();
  }
  // part[i][j]: the element of the tile's i-th index and inner index k + j
  FS_HD void load(int tile, int k, S (&part)[4][4]) const {
    FS_UNROLL
    for (int a = 0; a < 4; ++a) {
      const S* from = kTransposed ? &of(k + a, first(tile)) : &of(index(tile, a), k);
      const Four<S> four = *reinterpret_cast<const Four<S>*>(from);
      FS_UNROLL
      for (int b = 0; b < 4; ++b) (kTransposed ? part[b][a] : part[a][b]) = four.value[b];
    }
  }
};

// out = A B', a tile for each member, which then finishes its own: finish(tile of A, row(i), rows, col(j), cols).
template <class S, class A, class B, class Finish>
FS_HD void small_product(Deal& deal, const A& a, const B& b, int inner, const Matrix<S>& out,
                         const Finish& finish) {
  // 32 members beside each other take 8 x 4 tiles: few different rows and columns.
  constexpr int kDown = 8, kAcross = 4, kPatch = kDown * kAcross;
  const int down = (a.tiles() + kDown - 1) / kDown, across = (b.tiles() + kAcross - 1) / kAcross;
  deal(down * across * kPatch, [&](int item) {
    const int patch = item / kPatch, place = item % kPatch;
    const int ta = patch % down * kDown + place % kDown, tb = patch / down * kAcross + place / kDown;
    if (ta >= a.tiles() || tb >= b.tiles()) return;
    S sum[4][4] = {};
    for (int k = 0; k < inner; k += 4) {
      S p[4][4], q[4][4];
      a.load(ta, k, p);
      b.load(tb, k, q);
      FS_UNROLL
      for (int j = 0; j < 4; ++j) {
        FS_UNROLL
        for (int r = 0; r < 4; ++r) {
          FS_UNROLL
          for (int c = 0; c < 4; ++c) sum[r][c] += p[r][j] * q[c][j];
        }
      }
    }
    FS_UNROLL
    for (int r = 0; r < 4; ++r) {
      FS_UNROLL
      for (int c = 0; c < 4; ++c) {
        const int row = a.index(ta, r), col = b.index(tb, c);
        if (row < out.rows && col < out.cols) out(row, col) = sum[r][c];
      }
    }
    finish(ta, tb);
  });
}

}  // namespace fastsae::cuda
