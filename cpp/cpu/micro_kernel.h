// The innermost loops of our own matrix product, written once for every width of vector: a tile of the output that
// stays in registers, and the transposition that packs a factor. They are inlined into functions of one instruction set
// each, in panels.cpp, where products and additions are contracted to fma.
#pragma once

#include <cstdint>
#include <utility>

namespace fastsae::cpu {

template <class S, int W>
struct Vector {
  using type [[gnu::vector_size(W * sizeof(S))]] = S;
  // The same at any address.
  using loose [[gnu::vector_size(W * sizeof(S)), gnu::aligned(alignof(S)), gnu::may_alias]] = S;
};

template <class V, std::size_t Begin, std::size_t... Lane>
[[gnu::always_inline]] inline auto lanes_from(const V& x, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(x, x, (static_cast<int>(Begin + Lane))...);
}

template <class V, class Half, std::size_t... Lane>
[[gnu::always_inline]] inline V joined(const Half& low, const Half& high, std::index_sequence<Lane...>) {
  return __builtin_shufflevector(low, high, static_cast<int>(Lane)...);
}

// The first `lanes` < W numbers of x are stored, or added to what is there.
template <class S, int W, class V>
[[gnu::always_inline]] inline void store_first(S* to, const V& x, std::int64_t lanes, bool accumulate) {
  if constexpr (W == 2) {
    if (lanes == 1) *to = accumulate ? *to + x[0] : x[0];
  } else {
    using Half = typename Vector<S, W / 2>::loose;
    constexpr std::make_index_sequence<W / 2> half;
    const auto low = lanes_from<V, 0>(x, half), high = lanes_from<V, W / 2>(x, half);
    if (lanes < W / 2) return store_first<S, W / 2>(to, low, lanes, accumulate);
    Half& place = *reinterpret_cast<Half*>(to);
    place = accumulate ? place + low : low;
    store_first<S, W / 2>(to + W / 2, high, lanes - W / 2, accumulate);
  }
}

// A vector of `lanes` < W numbers and zeros.
template <class S, int W>
[[gnu::always_inline]] inline typename Vector<S, W>::type load_first(const S* from, std::int64_t lanes) {
  using V = typename Vector<S, W>::type;
  if constexpr (W == 2) {
    return lanes == 1 ? V{*from} : V{};
  } else {
    using Half = typename Vector<S, W / 2>::type;
    const bool whole = lanes >= W / 2;
    const Half low = whole ? Half(*reinterpret_cast<const typename Vector<S, W / 2>::loose*>(from))
                           : load_first<S, W / 2>(from, lanes);
    const Half high = whole ? load_first<S, W / 2>(from + W / 2, lanes - W / 2) : Half{};
    return joined<V>(low, high, std::make_index_sequence<W>{});
  }
}

// A tile of kRows x (kVectors * W): C = A B, or C += A B. Of A, row i at k is a[i * stride + k] or, with kAcross,
// a[k * stride + i]; the columns of B at k begin at b[k * b_stride]. Each output adds its terms in the order of k, one by
// one. Of the last vector `lanes` numbers are stored.
template <class S, int W, int kRows, int kVectors, bool kAcross>
[[gnu::always_inline]] inline void micro_kernel(std::int64_t inner, const S* a, std::int64_t stride,
                                                const S* b, std::int64_t b_stride, S* c,
                                                std::int64_t c_stride, std::int64_t lanes, bool accumulate) {
  using V = typename Vector<S, W>::type;
  using Loose = typename Vector<S, W>::loose;
  V sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[i][v] = V{};
  }
  for (std::int64_t k = 0; k < inner; ++k) {
    V line[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) line[v] = *reinterpret_cast<const Loose*>(b + v * W);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const S factor = kAcross ? a[i] : a[i * stride];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[i][v] += factor * line[v];
    }
    b += b_stride;
    a += kAcross ? stride : 1;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      S* to = c + i * c_stride + v * W;
      if (v + 1 < kVectors || lanes == W) {
        Loose& place = *reinterpret_cast<Loose*>(to);
        place = accumulate ? place + sum[i][v] : sum[i][v];
      } else {
        store_first<S, W>(to, sum[i][v], lanes, accumulate);
      }
    }
  }
}

// Of the lines x and y, which are Step apart: the blocks of Step numbers that a transposition exchanges.
template <class V, int Step, bool kSecond, std::size_t... Lane>
[[gnu::always_inline]] inline V exchanged(const V& x, const V& y, std::index_sequence<Lane...>) {
  constexpr int width = sizeof...(Lane);
  return __builtin_shufflevector(
      x, y,
      (kSecond ? ((Lane & Step) ? width + static_cast<int>(Lane) : static_cast<int>(Lane) + Step)
               : ((Lane & Step) ? width + static_cast<int>(Lane) - Step : static_cast<int>(Lane)))...);
}

template <class V, int W, int Step = 1>
[[gnu::always_inline]] inline void transpose(V (&line)[W]) {
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & Step) continue;
    const V x = line[i], y = line[i + Step];
    line[i] = exchanged<V, Step, false>(x, y, std::make_index_sequence<W>{});
    line[i + Step] = exchanged<V, Step, true>(x, y, std::make_index_sequence<W>{});
  }
  if constexpr (2 * Step < W) transpose<V, W, 2 * Step>(line);
}

// Outputs one row long: the sum of a[k] line[i][k] for each of W lines. The terms are added as micro_kernel adds them.
template <class S, int W>
[[gnu::always_inline]] inline typename Vector<S, W>::type dot_lines(std::int64_t inner, const S* a,
                                                                    const S* const (&line)[W]) {
  using V = typename Vector<S, W>::type;
  using Loose = typename Vector<S, W>::loose;
  V sum{};
  std::int64_t k = 0;
  for (; k + W <= inner; k += W) {
    V block[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) block[i] = *reinterpret_cast<const Loose*>(line[i] + k);
    transpose<V, W>(block);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) sum += a[k + i] * block[i];
  }
  for (; k < inner; ++k) {
    V across{};
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) across[i] = line[i][k];
    sum += a[k] * across;
  }
  return sum;
}

// Packs `vectors` * W columns of B, of which `cols` exist, for `inner` values of k; the others become 0.
// Here b[k * stride + col].
template <class S, int W>
[[gnu::always_inline]] inline void pack_lines(std::int64_t inner, std::int64_t cols, std::int64_t vectors,
                                              const S* b, std::int64_t stride, S* to) {
  using V = typename Vector<S, W>::type;
  using Loose = typename Vector<S, W>::loose;
  for (std::int64_t k = 0; k < inner; ++k, b += stride, to += vectors * W) {
    for (int v = 0; v < vectors; ++v) {
      const std::int64_t left = cols - v * W;
      V line{};
      if (left >= W)
        line = *reinterpret_cast<const Loose*>(b + v * W);
      else if (left > 0)
        line = load_first<S, W>(b + v * W, left);
      *reinterpret_cast<V*>(to + v * W) = line;
    }
  }
}

// The same where b[col * stride + k].
template <class S, int W>
[[gnu::always_inline]] inline void pack_transposed(std::int64_t inner, std::int64_t cols,
                                                   std::int64_t vectors, const S* b, std::int64_t stride,
                                                   S* to) {
  using V = typename Vector<S, W>::type;
  using Loose = typename Vector<S, W>::loose;
  for (int v = 0; v < vectors; ++v) {
    const S* from = b + v * W * stride;
    const std::int64_t left = cols - v * W < W ? cols - v * W : W;
    if (inner < W) {
      for (std::int64_t k = 0; k < inner; ++k) {
        for (std::int64_t lane = 0; lane < W; ++lane)
          to[(k * vectors + v) * W + lane] = lane < left ? from[lane * stride + k] : S(0);
      }
      continue;
    }
    for (std::int64_t begin = 0; begin < inner; begin += W) {
      const std::int64_t k =
          begin + W <= inner ? begin : inner - W;  // the last block overlaps the one before
      V block[W];
#pragma GCC unroll 16
      for (int lane = 0; lane < W; ++lane)
        block[lane] = lane < left ? V(*reinterpret_cast<const Loose*>(from + lane * stride + k)) : V{};
      transpose<V, W>(block);
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) *reinterpret_cast<V*>(to + ((k + i) * vectors + v) * W) = block[i];
    }
  }
}

}  // namespace fastsae::cpu
