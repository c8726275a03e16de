// Our own matrix products, piece by piece: every shape, every transposition, factors that end with their memory, outputs
// among other numbers, and the same bits in whatever pieces, by however many threads, on every instruction set.
#include "cpu/panels.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

#include "backend/process.h"
#include "core/error.h"
#include "cpu/pool.h"
#include "testing.h"

namespace {

using namespace fastsae;
using cpu::PanelProduct;
using cpu::Product;
using cpu::Range;

struct Shape3 {
  std::int64_t m, n, k;
};

// A factor whose memory ends with its last number.
template <class S>
struct Stored {
  Stored(std::int64_t rows, std::int64_t cols, std::int64_t gap, std::uint32_t seed)
      : stride(cols + gap), values(numbers<S>((rows - 1) * stride + cols, seed, -1)) {
    values.shrink_to_fit();
  }
  std::int64_t stride;
  std::vector<S> values;
};

// A product whose output lies inside of a larger matrix.
template <class S>
struct Problem {
  static constexpr std::int64_t kMargin = 3;

  Problem(const Shape3& shape, bool ta, bool tb, bool accumulate, std::int64_t gap)
      : shape(shape),
        a(ta ? shape.k : shape.m, ta ? shape.m : shape.k, gap, 1),
        b(tb ? shape.n : shape.k, tb ? shape.k : shape.n, gap, 2),
        stride(shape.n + 2 * kMargin),
        before(numbers<S>((shape.m + 2) * stride, 3, -1)),
        after(before),
        product{
            ta,       tb,         shape.m,       shape.n, shape.k, a.values.data(), a.stride, b.values.data(),
            b.stride, accumulate, inside(after), stride},
        name(text(sizeof(S) == 4 ? "f32 " : "f64 ", shape.m, " x ", shape.n, " x ", shape.k, ta ? " A'" : "",
                  tb ? " B'" : "", accumulate ? " +=" : "", " gap ", gap)) {}
  Problem(const Problem&) = delete;

  S* inside(std::vector<S>& matrix) const { return matrix.data() + stride + kMargin; }
  // A or B as it is multiplied, without gaps.
  std::vector<S> dense(bool second) const {
    const Stored<S>& f = second ? b : a;
    const bool turned = second ? product.transpose_b : product.transpose_a;
    const std::int64_t rows = second ? shape.k : shape.m, cols = second ? shape.n : shape.k;
    std::vector<S> values;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col)
        values.push_back(
            f.values[static_cast<std::size_t>(turned ? col * f.stride + row : row * f.stride + col)]);
    }
    return values;
  }
  // Gives the result, and the output is again what it was.
  std::vector<S> restart() {
    std::vector<S> result = after;
    std::copy(before.begin(), before.end(), after.begin());
    return result;
  }
  bool same_bits(const std::vector<S>& other) const {
    return std::memcmp(after.data(), other.data(), after.size() * sizeof(S)) == 0;
  }

  const Shape3 shape;
  const Stored<S> a, b;
  const std::int64_t stride;
  const std::vector<S> before;
  std::vector<S> after;
  const Product<S> product;
  const std::string name;
};

// Short sums are known to the last bit: fused multiply-adds in the order of k. Longer ones are made of parts.
template <class S>
void is_right(const Problem<S>& p) {
  constexpr std::int64_t kShort = 100;
  const auto& [m, n, k] = p.shape;
  const double tolerance = k <= kShort ? 0 : static_cast<double>(k) * std::numeric_limits<S>::epsilon();
  double worst = 0;
  std::vector<S> expected = p.before;
  const std::vector<S> left = p.dense(false), right = p.dense(true);
  std::vector<double> sums(static_cast<std::size_t>(n));
  double* const line = sums.data();
  for (std::int64_t row = 0; row < m; ++row) {
    S* const to = p.inside(expected) + row * p.stride;
    std::fill(sums.begin(), sums.end(), 0.0);
    for (std::int64_t i = 0; i < k; ++i) {
      const S factor = left[static_cast<std::size_t>(row * k + i)];
      const S* const others = right.data() + i * n;
      if (k <= kShort) {
        for (std::int64_t col = 0; col < n; ++col)
          line[col] = std::fma(factor, others[col], static_cast<S>(line[col]));
      } else {
        for (std::int64_t col = 0; col < n; ++col) line[col] += static_cast<double>(factor) * others[col];
      }
    }
    for (std::int64_t col = 0; col < n; ++col) {
      const S sum = static_cast<S>(line[col]);
      to[col] = p.product.accumulate ? to[col] + sum : sum;
    }
  }
  bool neighbours = true;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(expected.size()); ++i) {
    const std::int64_t row = i / p.stride - 1, col = i % p.stride - p.kMargin;
    const S got = p.after[static_cast<std::size_t>(i)], wanted = expected[static_cast<std::size_t>(i)];
    if (row < 0 || row >= m || col < 0 || col >= n)
      neighbours = neighbours && got == wanted;
    else if (!(std::fabs(got - wanted) <= worst))
      worst = std::fabs(got - wanted);
  }
  check(neighbours, p.name + ": what lies around the output stays as it was");
  check(worst <= tolerance, text(p.name, ": wrong by ", worst));
}

// Memory for one packed chunk, and not a number more. What nobody packs is NaN.
template <class S>
class Packed {
 public:
  explicit Packed(const PanelProduct<S>& product)
      : size_(product.packed_size()),
        memory_(static_cast<S*>(::operator new(static_cast<std::size_t>(size_) * sizeof(S), kAlignment))) {
    forget();
  }
  ~Packed() { ::operator delete(memory_, kAlignment); }
  Packed(const Packed&) = delete;
  void forget() { std::fill_n(memory_, size_, std::numeric_limits<S>::quiet_NaN()); }
  S* data() { return memory_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  const std::int64_t size_;
  S* const memory_;
};

// The last columns first, the last pieces first, and tasks of few panels by odd numbers of rows from the bottom up.
template <class S>
void pieces_give_the_same_bits(Problem<S>& p) {
  const std::vector<S> whole = p.restart();
  const PanelProduct<S> product(p.product);
  Packed<S> packed(product);
  const std::int64_t inner_chunks = product.chunks() / product.col_chunks();
  std::int64_t first = p.shape.n;
  for (std::int64_t columns = product.col_chunks(); columns-- > 0;) {
    for (std::int64_t i = 0; i < inner_chunks; ++i) {
      const std::int64_t chunk = columns * inner_chunks + i;
      check(product.col_chunk(chunk) == columns && product.finishes(chunk) == (i + 1 == inner_chunks),
            p.name + ": chunks are columns by parts of k");
      packed.forget();
      for (std::int64_t piece = product.pieces(chunk); piece-- > 0;)
        product.pack(chunk, piece, packed.data());
      std::int64_t height = 1;
      for (std::int64_t end = p.shape.m; end > 0; height = height * 3 % 29) {
        const std::int64_t begin = std::max<std::int64_t>(0, end - height);
        for (std::int64_t last = product.panels(chunk); last > 0;) {
          const Range panels{std::max<std::int64_t>(0, last - 1 - height % 3), last};
          product.run(chunk, {begin, end}, panels, packed.data());
          last = panels.begin;
        }
        end = begin;
      }
    }
    for (std::int64_t panel = product.panels(columns * inner_chunks); panel-- > 0;) {
      const Range cols = product.cols(columns * inner_chunks, {panel, panel + 1});
      check(cols.begin < cols.end && cols.end == first, p.name + ": panels cover the columns once");
      first = cols.begin;
    }
  }
  check(first == 0, p.name + ": panels cover the columns");
  check(p.same_bits(whole), p.name + ": pieces in another order give the same bits");
}

template <class S>
void threads_give_the_same_bits(Problem<S>& p) {
  const std::vector<S> whole = p.restart();
  const PanelProduct<S> product(p.product);
  Packed<S> packed(product);
  cpu::Pool pool;
  for (std::int64_t chunk = 0; chunk < product.chunks(); ++chunk) {
    pool.run(
        product.pieces(chunk), [&](std::int64_t piece) { product.pack(chunk, piece, packed.data()); }, [] {});
    const cpu::Even rows = cpu::Even::at_most(p.shape.m, 13);
    const cpu::Even panels = cpu::Even::at_most(product.panels(chunk), 2);
    pool.run(
        rows.parts * panels.parts,
        [&](std::int64_t task) {
          product.run(chunk, rows[task / panels.parts], panels[task % panels.parts], packed.data());
        },
        [] {});
  }
  check(p.same_bits(whole), p.name + ": threads give the same bits");
}

// Chunks that have the whole of k, in tiles that lie elsewhere.
template <class S>
void tiles_elsewhere_have_the_same_bits(Problem<S>& p) {
  if (p.product.accumulate) return;
  const std::vector<S> whole = p.restart();
  const PanelProduct<S> product(p.product, true);
  check(product.chunks() == product.col_chunks(), p.name + ": a chunk has whole sums");
  Packed<S> packed(product);
  for (std::int64_t chunk = 0; chunk < product.chunks(); ++chunk) {
    packed.forget();
    for (std::int64_t piece = 0; piece < product.pieces(chunk); ++piece)
      product.pack(chunk, piece, packed.data());
    const cpu::Even rows = cpu::Even::at_most(p.shape.m, 11);
    const cpu::Even panels = cpu::Even::at_most(product.panels(chunk), 3);
    for (std::int64_t task = 0; task < rows.parts * panels.parts; ++task) {
      const Range down = rows[task / panels.parts], across = panels[task % panels.parts];
      const Range cols = product.cols(chunk, across);
      const std::int64_t width = cols.end - cols.begin;
      std::vector<S> tile(static_cast<std::size_t>((down.end - down.begin) * width));
      product.run_to(chunk, down, across, packed.data(), tile.data(), width);
      for (std::int64_t row = down.begin; row < down.end; ++row)
        std::copy_n(tile.data() + (row - down.begin) * width, width,
                    p.inside(p.after) + row * p.stride + cols.begin);
    }
  }
  check(p.same_bits(whole), p.name + ": tiles elsewhere have the same bits");
}

// Every height and width of a tile with every rest; inner dimensions around the width of a vector.
std::vector<Shape3> small_shapes() {
  std::vector<Shape3> shapes{{25, 64, 100}, {64, 25, 100}, {100, 64, 25}, {33, 95, 64}, {7, 200, 77}};
  for (std::int64_t m = 1; m <= 17; ++m) shapes.push_back({m, 3 * m + m % 5, 20 - m});
  for (std::int64_t n = 1; n <= 50; ++n) shapes.push_back({1 + n % 9, n, 1 + 7 * n % 37});
  return shapes;
}

template <class S>
void small_products() {
  for (const Shape3& shape : small_shapes()) {
    for (int flags = 0; flags < 16; ++flags) {
      Problem<S> p(shape, flags & 1, flags & 2, flags & 4, flags & 8 ? 5 : 0);
      cpu::panel_gemm(p.product);
      is_right(p);
      pieces_give_the_same_bits(p);
    }
  }
}

// Many panels, several parts of k and several chunks; lines that crowd the cache and are copied; few rows and many.
template <class S>
void large_products() {
  const Shape3 shapes[] = {{3, 1500, 420}, {2, 1500, 768}, {33, 700, 384}, {192, 150, 70}, {128, 300, 200}};
  bool columns_are_cut = false, inner_is_cut = false;
  for (const Shape3& shape : shapes) {
    for (int flags = 0; flags < 8; ++flags) {
      Problem<S> p(shape, flags & 1, flags & 2, flags & 4, flags & 4 ? 5 : 0);
      cpu::panel_gemm(p.product);
      is_right(p);
      pieces_give_the_same_bits(p);
      threads_give_the_same_bits(p);
      tiles_elsewhere_have_the_same_bits(p);
      const PanelProduct<S> product(p.product);
      columns_are_cut = columns_are_cut || product.col_chunks() > 1;
      inner_is_cut = inner_is_cut || product.chunks() > product.col_chunks();
    }
  }
  check(columns_are_cut && inner_is_cut, "there are products of several chunks");
}

template <class S>
void empty_products_are_zero() {
  for (const bool accumulate : {false, true}) {
    std::vector<S> c(6, S(2));
    cpu::panel_gemm(Product<S>{false, false, 2, 3, 0, nullptr, 1, nullptr, 3, accumulate, c.data(), 3});
    check(c == std::vector<S>(6, accumulate ? S(2) : S(0)), "an empty sum is 0, or adds nothing");
    cpu::panel_gemm(Product<S>{false, false, 0, 3, 4, nullptr, 4, nullptr, 3, accumulate, c.data(), 3});
    cpu::panel_gemm(Product<S>{false, false, 2, 0, 4, nullptr, 4, nullptr, 1, accumulate, c.data(), 3});
    check(c == std::vector<S>(6, accumulate ? S(2) : S(0)), "an output without elements touches nothing");
  }
}

// An instruction set is chosen once in a process, so that each has one of its own.
void on_instruction_set(const char* name) {
  const pid_t child = fork();
  if (child == 0) {
    setenv("FASTSAE_ISA", name, 1);
    set_num_threads(4);
    try {
      if (cpu::has_panels()) {
        empty_products_are_zero<float>();
        empty_products_are_zero<double>();
        small_products<float>();
        small_products<double>();
        large_products<float>();
        large_products<double>();
      }
    } catch (const DeviceError& error) {
      std::printf("%s\n", error.what());  // there is nothing to test on this processor
    }
    std::exit(verdict(text("panels, ", name)));
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, text("products on ", name));
}

}  // namespace

int main() {
  on_instruction_set("avx2");
  on_instruction_set("avx512");
  return verdict("panels");
}
