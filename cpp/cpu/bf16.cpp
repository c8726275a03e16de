#include "cpu/bf16.h"

#include <cstring>
#include <memory>

#include "cpu/bf16_blocks.h"
#include "cpu/loops.h"

#if defined(__x86_64__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastsae::cpu {
namespace {

#if defined(__x86_64__) && defined(__linux__)

// ---- packing

// The first `count` lanes, of 16.
[[gnu::always_inline]] inline std::uint32_t lanes(std::int64_t count) {
  return count >= 16 ? 0xffffu : count <= 0 ? 0u : (1u << count) - 1;
}

// 16 lines of 16 words become columns. The masks keep every lane: GCC warns of its own header where there is none.
[[gnu::target("avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma"), gnu::always_inline]] inline void transpose(
    __m512i (&line)[16]) {
  __m512i pair[16], four[16];
  for (int i = 0; i < 16; i += 2) {
    pair[i] = _mm512_maskz_unpacklo_epi32(0xffff, line[i], line[i + 1]);
    pair[i + 1] = _mm512_maskz_unpackhi_epi32(0xffff, line[i], line[i + 1]);
  }
  // four[4 i + j]: in each quarter q, lines 4 i to 4 i + 3 of column 4 q + j.
  for (int i = 0; i < 16; i += 4) {
    four[i] = _mm512_maskz_unpacklo_epi64(0xff, pair[i], pair[i + 2]);
    four[i + 1] = _mm512_maskz_unpackhi_epi64(0xff, pair[i], pair[i + 2]);
    four[i + 2] = _mm512_maskz_unpacklo_epi64(0xff, pair[i + 1], pair[i + 3]);
    four[i + 3] = _mm512_maskz_unpackhi_epi64(0xff, pair[i + 1], pair[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i low_even = _mm512_maskz_shuffle_i32x4(0xffff, four[j], four[4 + j], 0x88);
    const __m512i low_odd = _mm512_maskz_shuffle_i32x4(0xffff, four[j], four[4 + j], 0xdd);
    const __m512i high_even = _mm512_maskz_shuffle_i32x4(0xffff, four[8 + j], four[12 + j], 0x88);
    const __m512i high_odd = _mm512_maskz_shuffle_i32x4(0xffff, four[8 + j], four[12 + j], 0xdd);
    line[j] = _mm512_maskz_shuffle_i32x4(0xffff, low_even, high_even, 0x88);
    line[4 + j] = _mm512_maskz_shuffle_i32x4(0xffff, low_odd, high_odd, 0x88);
    line[8 + j] = _mm512_maskz_shuffle_i32x4(0xffff, low_even, high_even, 0xdd);
    line[12 + j] = _mm512_maskz_shuffle_i32x4(0xffff, low_odd, high_odd, 0xdd);
  }
}

// One block. Lines along the inner dimension are rounded to 16 pairs each, lines across it are rounded and interleaved
// to a pair for each row or column; either is one factor's order and the other's transposed.
template <bool kAlong, bool kPairs>
[[gnu::target("avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma")]] void run_avx512(const Lines& lines,
                                                                                  std::int64_t count,
                                                                                  std::int64_t depth,
                                                                                  Bf16* to) {
  __m512i line[16];
  const float* from = lines.data;
  if constexpr (kAlong) {
    const auto low = static_cast<__mmask16>(lanes(depth)), high = static_cast<__mmask16>(lanes(depth - 16));
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i, from += lines.stride) {
      line[i] = i >= count ? _mm512_setzero_si512()
                           : (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, from + 16),
                                                          _mm512_maskz_loadu_ps(low, from));
    }
  } else {
    alignas(64) static constexpr std::uint16_t kInterleave[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                                  21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                                  11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i interleave = _mm512_load_si512(kInterleave);
    const auto present = static_cast<__mmask16>(lanes(count));
#pragma GCC unroll 16
    for (int k = 0; k < 32; k += 2, from += 2 * lines.stride) {
      const __m512 even = k < depth ? _mm512_maskz_loadu_ps(present, from) : _mm512_setzero_ps();
      const __m512 odd =
          k + 1 < depth ? _mm512_maskz_loadu_ps(present, from + lines.stride) : _mm512_setzero_ps();
      line[k / 2] = _mm512_permutexvar_epi16(interleave, (__m512i)_mm512_cvtne2ps_pbh(odd, even));
    }
  }
  if constexpr (kAlong == kPairs) transpose(line);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) _mm512_store_si512(to + i * kDepth, line[i]);
}

struct PackBf16 {
  static void pack(const Lines& lines, bool pairs, std::int64_t count, std::int64_t depth, Bf16* to) {
    const auto run = lines.along ? pairs ? run_avx512<true, true> : run_avx512<true, false>
                     : pairs     ? run_avx512<false, true>
                                 : run_avx512<false, false>;
    run(lines, count, depth, to);
  }
};

// ---- AVX512_BF16

// kRowCount rows of A, from one in a strip on, times kVectors strips of B: the sums stay in registers.
template <int kRowCount, int kVectors>
[[gnu::target("avx512bf16,avx512bw,avx512vl,avx512dq,avx2,fma")]] void run_avx512(
    const BlockProduct& p, const Bf16* a, const Bf16* b, std::int64_t cols, float* c) {
  const std::int64_t strip = p.strip;
  const auto last = static_cast<__mmask16>(lanes(cols - 16 * (kVectors - 1)));
  const auto mask = [last](int v) { return v == kVectors - 1 ? last : static_cast<__mmask16>(0xffff); };
  __m512 sum[kRowCount][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRowCount; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = p.add ? _mm512_maskz_loadu_ps(mask(v), c + r * p.ldc + 16 * v) : _mm512_setzero_ps();
  }
  for (std::int64_t k = 0; k < p.inner; k += kDepth, a += kBlock - kDepth) {
    const std::int64_t pairs = std::min(kDepth, p.inner - k + 1) / 2;
    for (std::int64_t pair = 0; pair < pairs; ++pair, a += 2, b += kDepth) {
      __m512bh right[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) right[v] = (__m512bh)_mm512_load_si512(b + v * strip);
#pragma GCC unroll 8
      for (int r = 0; r < kRowCount; ++r) {
        int two;
        std::memcpy(&two, a + r * kDepth, sizeof two);
        const auto left = (__m512bh)_mm512_set1_epi32(two);
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], left, right[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowCount; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) _mm512_mask_storeu_ps(c + r * p.ldc + 16 * v, mask(v), sum[r][v]);
  }
}

using MultiplyStrips = void (*)(const BlockProduct& p, const Bf16* a, const Bf16* b, std::int64_t cols,
                                float* c);

struct Avx512Bf16 : PackBf16 {
  void multiply(const BlockProduct& p) const {
    for (std::int64_t j = 0; j < p.cols; j += 3 * kStrip) {
      const std::int64_t cols = std::min(3 * kStrip, p.cols - j), vectors = (cols + kStrip - 1) / kStrip;
      const Bf16* b = p.b + j / kStrip * p.strip;
      for (std::int64_t i = 0; i < p.rows;) {
        const std::int64_t left = p.rows - i;
        const int rows = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;  // their logarithm
        const Bf16* a = p.a + i / kStrip * p.strip + i % kStrip * kDepth;
        kRun[rows][vectors - 1](p, a, b, cols, p.c + i * p.ldc + j);
        i += 1 << rows;
      }
    }
  }

 private:
  static constexpr MultiplyStrips kRun[4][3] = {{run_avx512<1, 1>, run_avx512<1, 2>, run_avx512<1, 3>},
                                                {run_avx512<2, 1>, run_avx512<2, 2>, run_avx512<2, 3>},
                                                {run_avx512<4, 1>, run_avx512<4, 2>, run_avx512<4, 3>},
                                                {run_avx512<8, 1>, run_avx512<8, 2>, run_avx512<8, 3>}};
};

// ---- AMX

// All eight tiles have 16 rows of 64 bytes.
struct TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileShapes) == 64);

// The instructions themselves, which every assembler knows and no flag has to allow.
struct AmxTiles {
  template <int kTile>
  void zero() const {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  void load(const void* from, std::int64_t stride) const {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  void store(void* to, std::int64_t stride) const {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kSum, int kA, int kB>
  void multiply() const {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
  }
};

// Configured while it lives: outside of a product the tiles are empty, and switching threads need not save them.
struct AmxBf16 : PackBf16 {
  AmxBf16() {
    const TileShapes shapes;
    asm volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~AmxBf16() { asm volatile("tilerelease"); }
  AmxBf16(const AmxBf16&) = delete;
  AmxBf16& operator=(const AmxBf16&) = delete;

  void multiply(const BlockProduct& p) const { multiply_in_tiles(AmxTiles{}, p); }
};

template <class Unit>
void multiply_here(const Lines& left, const Lines& right, std::int64_t m, std::int64_t n, std::int64_t k,
                   bool add, float* c, std::int64_t ldc) {
  thread_local const auto packed = std::make_unique_for_overwrite<PackedBf16>();
  multiply_packing<Unit>(left, right, m, n, k, add, c, ldc, *packed);
}

template <class Unit>
constexpr Bf16Unit unit_of(const char* name) {
  return {name, multiply_here<Unit>, pack_blocks<Unit>, multiply_packed<Unit>};
}

// Linux lets a process use the tiles once it has asked.
bool tiles_are_granted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

std::vector<Bf16Unit> find_units() {
  std::vector<Bf16Unit> units;
  if (isa() != Isa::avx512 || !__builtin_cpu_supports("avx512bf16")) return units;
  if (__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") && tiles_are_granted())
    units.push_back(unit_of<AmxBf16>("amx"));
  units.push_back(unit_of<Avx512Bf16>("avx512_bf16"));
  return units;
}

#else

std::vector<Bf16Unit> find_units() { return {}; }

#endif

}  // namespace

const std::vector<Bf16Unit>& bf16_units() {
  static const std::vector<Bf16Unit> units = find_units();
  return units;
}

const char* bf16_unit() { return bf16_units().empty() ? nullptr : bf16_units().front().name; }

void gemm_bf16(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
               std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  bf16_units().front().multiply({a, lda, !ta}, {b, ldb, tb}, m, n, k, beta != 0, c, ldc);
}

// ---- products in tiles

namespace {

constexpr std::int64_t kPart = 8 * kStrip;  // rows or columns that one task packs
constexpr std::int64_t kMostPacked = 32 << 20;
constexpr std::int64_t kFewPacked = 256 << 10;  // so few are packed again while threads would wait

std::int64_t parts_of(std::int64_t count) { return (count + kPart - 1) / kPart; }
std::int64_t packed_size(std::int64_t count, std::int64_t depth) {
  return (count + kStrip - 1) / kStrip * strip_size(depth);
}

}  // namespace

bool Bf16Product::pays(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t row_tiles,
                       std::int64_t col_tiles) {
  const std::int64_t again = (m * (col_tiles - 1) + n * (row_tiles - 1)) * k;
  return again >= kFewPacked && packed_size(m, k) + packed_size(n, k) <= kMostPacked;
}

std::size_t Bf16Product::bytes(std::int64_t m, std::int64_t n, std::int64_t k) {
  return static_cast<std::size_t>(packed_size(m, k) + packed_size(n, k)) * sizeof(Bf16) + kAlignment;
}

Bf16Product::Bf16Product(const Bf16Unit& unit, const Lines& a, const Lines& b, std::int64_t m, std::int64_t n,
                         std::int64_t k, void* memory)
    : unit_(unit), a_(a), b_(b), m_(m), n_(n), k_(k) {
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  left_ = reinterpret_cast<Bf16*>((address + kAlignment - 1) / kAlignment * kAlignment);
  right_ = left_ + packed_size(m, k);
}

std::int64_t Bf16Product::parts() const { return parts_of(m_) + parts_of(n_); }

void Bf16Product::pack(std::int64_t part) const {
  const bool right = part >= parts_of(m_);
  const std::int64_t first = (right ? part - parts_of(m_) : part) * kPart, count = right ? n_ : m_;
  unit_.pack((right ? b_ : a_).at(first, 0), right, std::min(kPart, count - first), k_,
             (right ? right_ : left_) + packed_size(first, k_));
}

void Bf16Product::multiply(Range rows, Range cols, bool add, float* c, std::int64_t ldc) const {
  unit_.multiply_packed({left_ + packed_size(rows.begin, k_), right_ + packed_size(cols.begin, k_),
                         strip_size(k_), rows.end - rows.begin, cols.end - cols.begin, k_, c, ldc, add});
}

}  // namespace fastsae::cpu
