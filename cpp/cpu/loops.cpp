#include "cpu/loops.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kSumRows = 128;  // rows summed in the compute type before they join the double sum
constexpr std::int64_t kSumCols = 512;
constexpr std::int64_t kLanes = 16;  // partial sums along a row; fixed, so that bits do not depend on the ISA

template <class K, class S = typename K::Scalar>
[[gnu::always_inline]] inline void each(const K& kernel, View<S> out, Block block) {
  for (std::int64_t row = block.row_begin; row < block.row_end; ++row) {
    S* line = out.data + row * out.stride;
#pragma GCC ivdep
    for (std::int64_t col = block.col_begin; col < block.col_end; ++col)
      line[col] = kernel(row, col, line[col], nullptr);
  }
}

template <class K, class S = typename K::Scalar>
[[gnu::always_inline]] inline void sum_columns(const K& kernel, View<S> out, Block block, double* sums,
                                               std::int64_t sum_stride) {
  S partial[K::sums][kSumCols];
  for (std::int64_t c0 = block.col_begin; c0 < block.col_end; c0 += kSumCols) {
    const std::int64_t width = std::min(kSumCols, block.col_end - c0);
    for (int k = 0; k < K::sums; ++k) std::fill_n(sums + k * sum_stride + c0, width, 0.0);
    for (std::int64_t r0 = block.row_begin; r0 < block.row_end; r0 += kSumRows) {
      const std::int64_t r1 = std::min(r0 + kSumRows, block.row_end);
      for (int k = 0; k < K::sums; ++k) std::fill_n(partial[k], width, S(0));
      for (std::int64_t row = r0; row < r1; ++row) {
        S* line = out.data + row * out.stride + c0;
#pragma GCC ivdep
        for (std::int64_t i = 0; i < width; ++i) {
          S summand[K::sums];
          line[i] = kernel(row, c0 + i, line[i], summand);
          for (int k = 0; k < K::sums; ++k) partial[k][i] += summand[k];
        }
      }
      for (int k = 0; k < K::sums; ++k) {
        for (std::int64_t i = 0; i < width; ++i)
          sums[k * sum_stride + c0 + i] += static_cast<double>(partial[k][i]);
      }
    }
  }
}

template <class K, class S = typename K::Scalar>
[[gnu::always_inline]] inline void sum_rows(const K& kernel, View<S> out, Block block, double* sums,
                                            std::int64_t sum_stride) {
  static_assert(K::sums == 1);
  for (std::int64_t row = block.row_begin; row < block.row_end; ++row) {
    S* line = out.data + row * out.stride;
    S partial[kLanes] = {};
    std::int64_t col = block.col_begin;
    for (; col + kLanes <= block.col_end; col += kLanes) {
#pragma GCC ivdep
      for (std::int64_t i = 0; i < kLanes; ++i) {
        S summand;
        line[col + i] = kernel(row, col + i, line[col + i], &summand);
        partial[i] += summand;
      }
    }
    for (; col < block.col_end; ++col) {
      S summand;
      line[col] = kernel(row, col, line[col], &summand);
      partial[0] += summand;
    }
    double sum = 0;
    for (const S part : partial) sum += static_cast<double>(part);
    sums[row * sum_stride] = sum;
  }
}

// A tensor of one column without gaps: the maps of an image with one channel. The loops above would take it number by
// number, so here the rows are what goes side by side.
template <class K, class S = typename K::Scalar>
[[gnu::always_inline]] inline void one_column(const K& kernel, S* out, Block block, double* sums,
                                              std::int64_t sum_stride) {
  const std::int64_t col = block.col_begin;
  if constexpr (K::pass == Pass::each) {
#pragma GCC ivdep
    for (std::int64_t row = block.row_begin; row < block.row_end; ++row)
      out[row] = kernel(row, col, out[row], nullptr);
  }
  if constexpr (K::pass == Pass::row_sum) {
#pragma GCC ivdep
    for (std::int64_t row = block.row_begin; row < block.row_end; ++row) {
      S summand;
      out[row] = kernel(row, col, out[row], &summand);
      sums[row * sum_stride] = static_cast<double>(summand);
    }
  }
  if constexpr (K::pass == Pass::col_sum) {
    for (int k = 0; k < K::sums; ++k) sums[k * sum_stride + col] = 0;
    for (std::int64_t r0 = block.row_begin; r0 < block.row_end; r0 += kLanes * kSumRows) {
      const std::int64_t r1 = std::min(r0 + kLanes * kSumRows, block.row_end);
      S partial[K::sums][kLanes] = {};
      std::int64_t row = r0;
      for (; row + kLanes <= r1; row += kLanes) {
#pragma GCC ivdep
        for (std::int64_t i = 0; i < kLanes; ++i) {
          S summand[K::sums];
          out[row + i] = kernel(row + i, col, out[row + i], summand);
          for (int k = 0; k < K::sums; ++k) partial[k][i] += summand[k];
        }
      }
      for (; row < r1; ++row) {
        S summand[K::sums];
        out[row] = kernel(row, col, out[row], summand);
        for (int k = 0; k < K::sums; ++k) partial[k][0] += summand[k];
      }
      for (int k = 0; k < K::sums; ++k) {
        for (const S part : partial[k]) sums[k * sum_stride + col] += static_cast<double>(part);
      }
    }
  }
}

template <class K>
[[gnu::always_inline]] inline void run(const std::byte* bytes, const Tensor& out, Block block, double* sums,
                                       std::int64_t sum_stride) {
  K kernel = *reinterpret_cast<const K*>(bytes);
  if constexpr (requires { kernel.load(); }) kernel.load();
  if constexpr (requires { kernel.idle(); }) {
    if (kernel.idle()) return;
  }
  const View<typename K::Scalar> view = out.view<typename K::Scalar>();
  if constexpr (K::epilogue) {
    if (out.cols == 1 && out.stride == 1) return one_column(kernel, view.data, block, sums, sum_stride);
  }
  if constexpr (K::pass == Pass::each) each(kernel, view, block);
  if constexpr (K::pass == Pass::col_sum) sum_columns(kernel, view, block, sums, sum_stride);
  if constexpr (K::pass == Pass::row_sum) sum_rows(kernel, view, block, sums, sum_stride);
}

template <class K>
void run_baseline(const std::byte* k, const Tensor& out, Block block, double* sums, std::int64_t stride) {
  run<K>(k, out, block, sums, stride);
}

#if defined(__x86_64__)
template <class K>
[[gnu::target("avx2,fma")]] void run_avx2(const std::byte* k, const Tensor& out, Block block, double* sums,
                                          std::int64_t stride) {
  run<K>(k, out, block, sums, stride);
}
template <class K>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")]] void run_avx512(
    const std::byte* k, const Tensor& out, Block block, double* sums, std::int64_t stride) {
  run<K>(k, out, block, sums, stride);
}
#else
template <class K>
constexpr Loop run_avx2 = run_baseline<K>;
template <class K>
constexpr Loop run_avx512 = run_baseline<K>;
#endif

template <class List>
struct Table;
template <class... Ks>
struct Table<TypeList<Ks...>> {
  static constexpr std::array<Loop, sizeof...(Ks)> baseline{run_baseline<Ks>...};
  static constexpr std::array<Loop, sizeof...(Ks)> avx2{run_avx2<Ks>...};
  static constexpr std::array<Loop, sizeof...(Ks)> avx512{run_avx512<Ks>...};
};

Isa best_isa() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa chosen_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("FASTSAE_ISA");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (const Isa level : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::string(wanted) == isa_name(level)) {
      if (level > best)
        throw DeviceError(text("FASTSAE_ISA=", wanted, ": this processor has only ", isa_name(best)));
      return level;
    }
  }
  throw ValueError(text("FASTSAE_ISA: expected baseline, avx2 or avx512, got '", wanted, "'"));
}

}  // namespace

Isa isa() {
  static const Isa level = chosen_isa();
  return level;
}

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

Loop find_loop(const Kernel& kernel) {
  using Loops = Table<KernelList>;
  const auto& loops = isa() == Isa::avx512 ? Loops::avx512
                      : isa() == Isa::avx2 ? Loops::avx2
                                           : Loops::baseline;
  return loops[kernel.index];
}

}  // namespace fastsae::cpu
