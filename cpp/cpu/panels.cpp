#include "cpu/panels.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu/loops.h"
#include "cpu/micro_kernel.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kInner = 384;           // longest part of k; the parts depend on k alone
constexpr std::int64_t kChunkBytes = 2 << 20;  // of packed B that threads share
constexpr std::int64_t kNearBytes = 384
                                    << 10;  // of packed B that a thread goes through for each band of rows
constexpr std::int64_t kCrowded = 256;      // bytes; lines a multiple of it apart crowd the first cache
constexpr std::int64_t kCopiedRows = 64;
constexpr std::int64_t kPackedLines = 32;
constexpr std::int64_t kFewRows = 32;           // for which packing B takes longer than reading it as it lies
constexpr int kMostRows = 8, kMostVectors = 3;  // of a tile

template <class S>
constexpr auto bytes_of = static_cast<std::int64_t>(sizeof(S));

template <class S>
using Micro = void (*)(std::int64_t inner, const S* a, std::int64_t stride, const S* b, std::int64_t b_stride,
                       S* c, std::int64_t c_stride, std::int64_t lanes, bool accumulate);
template <class S>
using Elements = void (*)(const S* x, std::int64_t inner, const S* weight, std::int64_t stride,
                          const std::int32_t* rows, std::int64_t count, S* to);
template <class S>
using Pack = void (*)(std::int64_t inner, std::int64_t cols, std::int64_t vectors, const S* b,
                      std::int64_t stride, S* to);

#if defined(__x86_64__)

// The only functions with instructions of their level; a test reads that in the disassembly.
template <class Job, class... Args>
[[gnu::target("avx2,fma")]] void run_avx2(Args... args) {
  Job::run(args...);
}
template <class Job, class... Args>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")]] void run_avx512(
    Args... args) {
  Job::run(args...);
}

template <class S, int W, int kRows, int kVectors, bool kAcross>
struct TileJob {
  [[gnu::always_inline]] static void run(std::int64_t inner, const S* a, std::int64_t stride, const S* b,
                                         std::int64_t b_stride, S* c, std::int64_t c_stride,
                                         std::int64_t lanes, bool accumulate) {
    micro_kernel<S, W, kRows, kVectors, kAcross>(inner, a, stride, b, b_stride, c, c_stride, lanes,
                                                 accumulate);
  }
};

template <class S, int W, bool kTransposed>
struct PackJob {
  [[gnu::always_inline]] static void run(std::int64_t inner, std::int64_t cols, std::int64_t vectors,
                                         const S* b, std::int64_t stride, S* to) {
    if constexpr (kTransposed)
      pack_transposed<S, W>(inner, cols, vectors, b, stride, to);
    else
      pack_lines<S, W>(inner, cols, vectors, b, stride, to);
  }
};

template <class S, int W>
struct ElementsJob {
  [[gnu::always_inline]] static void run(const S* x, std::int64_t inner, const S* weight, std::int64_t stride,
                                         const std::int32_t* rows, std::int64_t count, S* to) {
    const Even parts = Even::at_most(inner, kInner);
    for (std::int64_t first = 0; first < count; first += W) {
      typename Vector<S, W>::type sum{};
      for (std::int64_t part = 0; part < parts.parts; ++part) {
        const Range k = parts[part];
        const S* line[W];
        for (int i = 0; i < W; ++i)
          line[i] = weight + rows[std::min(first + i, count - 1)] * stride + k.begin;
        const auto terms = dot_lines<S, W>(k.end - k.begin, x + k.begin, line);
        sum = part == 0 ? terms : sum + terms;
      }
      if (count - first >= W)
        *reinterpret_cast<typename Vector<S, W>::loose*>(to + first) = sum;
      else
        store_first<S, W>(to + first, sum, count - first, false);
    }
  }
};

// 16 registers of 32 bytes, or 32 of 64.
struct Avx2 {
  static constexpr int bytes = 32, rows = 4;
  template <class Job, class F>
  static constexpr F function = run_avx2<Job>;
};
struct Avx512 {
  static constexpr int bytes = 64, rows = 8;
  template <class Job, class F>
  static constexpr F function = run_avx512<Job>;
};

#endif

// What one instruction set has.
template <class S>
struct Kernels {
  std::int64_t width, rows;
  Elements<S> elements;
  Pack<S> pack[2];                             // as B lies, transposed
  Micro<S> micro[2][kMostVectors][kMostRows];  // by how A lies, vectors - 1, rows - 1
};

template <class S, class Level>
constexpr Kernels<S> kernels_of() {
  constexpr int width = Level::bytes / static_cast<int>(sizeof(S));
  Kernels<S> all{width,
                 Level::rows,
                 Level::template function<ElementsJob<S, width>, Elements<S>>,
                 {Level::template function<PackJob<S, width, false>, Pack<S>>,
                  Level::template function<PackJob<S, width, true>, Pack<S>>},
                 {}};
  const auto heights = [&]<bool kAcross, int kVectors, std::size_t... Row>(
                           std::bool_constant<kAcross>, std::integral_constant<int, kVectors>,
                           std::index_sequence<Row...>) {
    ((all.micro[kAcross][kVectors - 1][Row] =
          Level::template function<TileJob<S, width, static_cast<int>(Row) + 1, kVectors, kAcross>,
                                   Micro<S>>),
     ...);
  };
  const auto widths = [&]<std::size_t... V>(auto across, std::index_sequence<V...>) {
    (heights(across, std::integral_constant<int, static_cast<int>(V) + 1>{},
             std::make_index_sequence<Level::rows>{}),
     ...);
  };
  widths(std::false_type{}, std::make_index_sequence<kMostVectors>{});
  widths(std::true_type{}, std::make_index_sequence<kMostVectors>{});
  return all;
}

template <class S>
const Kernels<S>* kernels() {
#if defined(__x86_64__)
  static constexpr Kernels<S> avx2 = kernels_of<S, Avx2>(), avx512 = kernels_of<S, Avx512>();
  return isa() == Isa::avx512 ? &avx512 : isa() == Isa::avx2 ? &avx2 : nullptr;
#else
  return nullptr;
#endif
}

// Memory of a thread that is kept from call to call.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::operator delete(memory_, kAlignment); }
  void* get(std::int64_t bytes) {
    if (bytes > size_) {
      void* larger = ::operator new(static_cast<std::size_t>(bytes), kAlignment);
      ::operator delete(std::exchange(memory_, larger), kAlignment);
      size_ = bytes;
    }
    return memory_;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void* memory_ = nullptr;
  std::int64_t size_ = 0;
};

// Panels of packed B against rows of A, for one part of k.
template <class S>
struct Columns {
  const Kernels<S>& kernels;
  std::int64_t inner;
  const S* packed;  // of the first panel of all
  const S* direct;  // B itself, from which whole panels are read; or null
  std::int64_t ldb;
  Even panels;  // vectors of columns, by panel
  std::int64_t cols;
  bool accumulate;
  std::int64_t before;  // columns, which C has not

  // Rows of A from `a` on; those of C from `c` on.
  void run(Range part, std::int64_t rows, const S* a, std::int64_t stride, bool across, S* c,
           std::int64_t ldc) const {
    const Even bands = Even::at_most(rows, kernels.rows);
    for (std::int64_t band = 0; band < bands.parts; ++band) {
      const Range r = bands[band];
      const S* lines = a + r.begin * (across ? 1 : stride);
      for (std::int64_t panel = part.begin; panel < part.end; ++panel) {
        const Range v = panels[panel];
        const std::int64_t first = v.begin * kernels.width, across_count = v.end - v.begin;
        const std::int64_t left = cols - (v.end - 1) * kernels.width;
        const bool in_place = direct != nullptr && left >= kernels.width;
        kernels.micro[across][across_count - 1][r.end - r.begin - 1](
            inner, lines, stride, in_place ? direct + first : packed + first * inner,
            in_place ? ldb : across_count * kernels.width, c + r.begin * ldc + (first - before), ldc,
            std::min(left, kernels.width), accumulate);
      }
    }
  }
};

}  // namespace

bool has_panels() { return kernels<float>() != nullptr; }

template <class S>
PanelProduct<S>::PanelProduct(const Product<S>& product, bool whole_sums)
    : p_(product),
      width_(kernels<S>()->width),
      inner_(Even::at_most(p_.k, kInner)),
      col_chunks_(Even::at_most(
          Even::at_most(p_.n, width_).parts,
          std::max<std::int64_t>(
              kMostVectors, kChunkBytes / ((whole_sums ? p_.k : inner_.longest()) * width_ * bytes_of<S>)))),
      inner_chunks_(whole_sums ? Even{inner_.parts, 1}
                               : Even::at_most(inner_.parts,
                                               std::max<std::int64_t>(
                                                   1, kChunkBytes / (inner_.longest() * width_ * bytes_of<S> *
                                                                     col_chunks_.longest())))) {}

template <class S>
bool PanelProduct<S>::reads_in_place() const {
  return !p_.transpose_b && p_.m <= kFewRows;
}

template <class S>
auto PanelProduct<S>::at(std::int64_t chunk) const -> Chunk {
  const Range vectors = col_chunks_[chunk / inner_chunks_.parts];
  return {vectors, inner_chunks_[chunk % inner_chunks_.parts],
          Even::at_most(vectors.end - vectors.begin, kMostVectors)};
}

template <class S>
std::int64_t PanelProduct<S>::packed_size() const {
  return col_chunks_.longest() * width_ * inner_chunks_.longest() * inner_.longest();
}

template <class S>
Range PanelProduct<S>::cols(std::int64_t chunk, Range panels) const {
  const Chunk here = at(chunk);
  const std::int64_t end = here.vectors.begin + here.panels[panels.end - 1].end;
  return {(here.vectors.begin + here.panels[panels.begin].begin) * width_, std::min(p_.n, end * width_)};
}

// Of B as it lies, a few lines for all panels, so that memory is read in its order; else a panel.
template <class S>
std::int64_t PanelProduct<S>::pieces_of(const Chunk& chunk) const {
  return p_.transpose_b ? chunk.panels.parts : Even::at_most(inner_.longest(), kPackedLines).parts;
}

template <class S>
std::int64_t PanelProduct<S>::pieces(std::int64_t chunk) const {
  const Chunk here = at(chunk);
  return pieces_of(here) * (here.parts.end - here.parts.begin);
}

template <class S>
void PanelProduct<S>::pack(std::int64_t chunk, std::int64_t piece, S* packed) const {
  const Chunk here = at(chunk);
  const std::int64_t pieces = pieces_of(here), part = here.parts.begin + piece / pieces;
  const Range k = inner_[part];
  const std::int64_t inner = k.end - k.begin, begin = here.vectors.begin * width_;
  S* const to = packed + (k.begin - inner_[here.parts.begin].begin) * here.panels.count * width_;
  if (p_.transpose_b) {
    const Range v = here.panels[piece % pieces];
    const std::int64_t col = begin + v.begin * width_;
    return kernels<S>()->pack[true](inner, p_.n - col, v.end - v.begin, p_.b + col * p_.ldb + k.begin, p_.ldb,
                                    to + v.begin * width_ * inner);
  }
  const Range lines = Even{inner, pieces}[piece % pieces];
  for (std::int64_t panel = 0; panel < here.panels.parts; ++panel) {
    const Range v = here.panels[panel];
    const std::int64_t col = begin + v.begin * width_, vectors = v.end - v.begin;
    if (reads_in_place() && col + vectors * width_ <= p_.n) continue;
    kernels<S>()->pack[false](lines.end - lines.begin, p_.n - col, vectors,
                              p_.b + (k.begin + lines.begin) * p_.ldb + col, p_.ldb,
                              to + (v.begin * inner + lines.begin * vectors) * width_);
  }
}

template <class S>
void PanelProduct<S>::run(std::int64_t chunk, Range rows, Range panels, const S* packed) const {
  run_to(chunk, rows, panels, packed, p_.c + rows.begin * p_.ldc + cols(chunk, panels).begin, p_.ldc);
}

template <class S>
void PanelProduct<S>::run_to(std::int64_t chunk, Range rows, Range panels, const S* packed, S* c,
                             std::int64_t ldc) const {
  constexpr std::int64_t size = bytes_of<S>;
  static thread_local Buffer buffer;
  const Chunk here = at(chunk);
  const std::int64_t begin = here.vectors.begin * width_, count = rows.end - rows.begin;
  // Of a transposed A whose lines crowd the cache, a few rows at a time are copied.
  const bool copies = p_.transpose_a && p_.lda * size % kCrowded == 0 && panels.end - panels.begin > 1;
  const std::int64_t near_panels =
      std::max<std::int64_t>(1, kNearBytes / (inner_.longest() * width_ * kMostVectors * size));
  const Even near = Even::at_most(panels.end - panels.begin, near_panels);
  S* const copied = copies ? static_cast<S*>(buffer.get(kCopiedRows * inner_.longest() * size)) : nullptr;
  for (std::int64_t part = here.parts.begin; part < here.parts.end; ++part) {
    const Range k = inner_[part];
    const std::int64_t before = (k.begin - inner_[here.parts.begin].begin) * here.panels.count;
    const Columns<S> columns{*kernels<S>(),
                             k.end - k.begin,
                             packed + before * width_,
                             reads_in_place() ? p_.b + k.begin * p_.ldb + begin : nullptr,
                             p_.ldb,
                             here.panels,
                             p_.n - begin,
                             p_.accumulate || part > 0,
                             here.panels[panels.begin].begin * width_};
    const S* a = p_.transpose_a ? p_.a + k.begin * p_.lda + rows.begin : p_.a + rows.begin * p_.lda + k.begin;
    for (std::int64_t i = 0; i < near.parts; ++i) {
      const Range some{panels.begin + near[i].begin, panels.begin + near[i].end};
      if (!copies) columns.run(some, count, a, p_.lda, p_.transpose_a, c, ldc);
      for (std::int64_t row = 0; copies && row < count; row += kCopiedRows) {
        const std::int64_t height = std::min(kCopiedRows, count - row);
        for (std::int64_t line = 0; line < columns.inner; ++line)
          std::copy_n(a + line * p_.lda + row, height, copied + line * kCopiedRows);
        columns.run(some, height, copied, kCopiedRows, true, c + row * ldc, ldc);
      }
    }
  }
}

template <class S>
void panel_gemm(const Product<S>& p) {
  static thread_local Buffer buffer;
  if (p.m == 0 || p.n == 0) return;
  if (p.k == 0) {
    for (std::int64_t row = 0; row < p.m && !p.accumulate; ++row) std::fill_n(p.c + row * p.ldc, p.n, S(0));
    return;
  }
  const PanelProduct<S> product(p);
  S* const packed = static_cast<S*>(buffer.get(product.packed_size() * bytes_of<S>));
  for (std::int64_t chunk = 0; chunk < product.chunks(); ++chunk) {
    for (std::int64_t piece = 0; piece < product.pieces(chunk); ++piece) product.pack(chunk, piece, packed);
    product.run(chunk, {0, p.m}, {0, product.panels(chunk)}, packed);
  }
}

template <class S>
void panel_elements(const S* x, std::int64_t inner, const S* weight, std::int64_t stride,
                    const std::int32_t* rows, std::int64_t count, S* to) {
  kernels<S>()->elements(x, inner, weight, stride, rows, count, to);
}

template class PanelProduct<float>;
template class PanelProduct<double>;
template void panel_gemm(const Product<float>&);
template void panel_gemm(const Product<double>&);
template void panel_elements(const float*, std::int64_t, const float*, std::int64_t, const std::int32_t*,
                             std::int64_t, float*);
template void panel_elements(const double*, std::int64_t, const double*, std::int64_t, const std::int32_t*,
                             std::int64_t, double*);

}  // namespace fastsae::cpu
