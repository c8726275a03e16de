// Products of bfloat16 factors: by each unit of this processor, and through the loop over AMX tiles with plain C++ in
// place of the instructions, so that it is tested where there are none.
#include "cpu/bf16.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "core/error.h"
#include "cpu/bf16_blocks.h"
#include "cpu/float_mode.h"
#include "testing.h"

namespace {

using namespace fastsae;
using namespace fastsae::cpu;

constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

// ---- what the hardware does, in plain C++

// Eight tiles of 16 rows of 64 bytes. TDPBF16PS as Intel's manual has it: the even and the odd products of a row are
// summed apart, added to each other and then to the sum.
class PlainTiles {
 public:
  template <int kTile>
  void zero() const {
    std::memset(tile_[kTile], 0, sizeof tile_[kTile]);
  }
  template <int kTile>
  void load(const void* from, std::int64_t stride) const {
    for (int row = 0; row < 16; ++row)
      std::memcpy(tile_[kTile][row], static_cast<const std::byte*>(from) + row * stride, 64);
  }
  template <int kTile>
  void store(void* to, std::int64_t stride) const {
    for (int row = 0; row < 16; ++row)
      std::memcpy(static_cast<std::byte*>(to) + row * stride, tile_[kTile][row], 64);
  }
  template <int kSum, int kA, int kB>
  void multiply() const {
    for (int row = 0; row < 16; ++row) {
      for (int col = 0; col < 16; ++col) {
        float even = 0, odd = 0, sum;
        for (int pair = 0; pair < 16; ++pair) {
          even += number(kA, row, 2 * pair) * number(kB, pair, 2 * col);
          odd += number(kA, row, 2 * pair + 1) * number(kB, pair, 2 * col + 1);
        }
        std::memcpy(&sum, tile_[kSum][row] + 4 * col, 4);
        sum += even + odd;
        std::memcpy(tile_[kSum][row] + 4 * col, &sum, 4);
      }
    }
  }

 private:
  static float number(int tile, int row, int at) {
    Bf16 number;
    std::memcpy(&number, tile_[tile][row] + 2 * at, 2);
    return number.value();
  }
  static inline std::byte tile_[8][16][64];
};

struct PlainUnit {
  static void pack(const Lines& lines, bool pairs, std::int64_t count, std::int64_t depth, Bf16* to) {
    for (std::int64_t i = 0; i < kStrip; ++i) {
      for (std::int64_t l = 0; l < kDepth; ++l, ++to) {
        const std::int64_t row = pairs ? l / 2 : i, inner = pairs ? 2 * i + l % 2 : l;
        *to = row < count && inner < depth ? Bf16::round(*lines.at(row, inner).data) : Bf16{0};
      }
    }
  }
  void multiply(const BlockProduct& p) const { multiply_in_tiles(PlainTiles{}, p); }
};

void multiply_plain(const Lines& left, const Lines& right, std::int64_t m, std::int64_t n, std::int64_t k,
                    bool add, float* c, std::int64_t ldc) {
  static const auto packed = std::make_unique<PackedBf16>();
  multiply_packing<PlainUnit>(left, right, m, n, k, add, c, ldc, *packed);
}

// ---- products

// Rows of `cols` numbers with poison between them.
struct Matrix {
  std::int64_t rows, cols, stride;
  std::vector<float> values;

  Matrix(std::int64_t rows, std::int64_t cols, std::int64_t padding, std::uint32_t seed)
      : rows(rows),
        cols(cols),
        stride(cols + padding),
        values(static_cast<std::size_t>(rows * stride), kPoison) {
    Numbers source(seed);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) at(row, col) = static_cast<float>(source.between(-1, 1));
    }
  }
  float& at(std::int64_t row, std::int64_t col) {
    return values[static_cast<std::size_t>(row * stride + col)];
  }
};

struct Factors {
  bool ta, tb;
  std::int64_t m, n, k;
  Matrix a, b;

  Factors(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t padding)
      : ta(ta),
        tb(tb),
        m(m),
        n(n),
        k(k),
        a(ta ? k : m, ta ? m : k, padding, 1),
        b(tb ? n : k, tb ? k : n, padding, 2) {}
  float& left(std::int64_t i, std::int64_t l) { return ta ? a.at(l, i) : a.at(i, l); }
  float& right(std::int64_t l, std::int64_t j) { return tb ? b.at(j, l) : b.at(l, j); }

  Lines left_lines() { return {a.values.data(), a.stride, !ta}; }
  Lines right_lines() { return {b.values.data(), b.stride, tb}; }

  // Of rows i.. and columns j.. of C alone, as a tile of it is computed.
  void multiply(const Bf16Unit& unit, std::int64_t i, std::int64_t j, std::int64_t rows, std::int64_t cols,
                bool add, Matrix& c) {
    if (rows > 0 && cols > 0)
      unit.multiply(left_lines().at(i, 0), right_lines().at(j, 0), rows, cols, k, add, &c.at(i, j), c.stride);
  }
  std::string name() const { return text(m, "x", n, "x", k, ta ? " T" : " N", tb ? "T" : "N"); }
};

// Products of rounded numbers are exact in float: what is left is the error of k + 1 additions, and some more where the
// order is that of the tiles.
void is_the_product(const Bf16Unit& unit, Factors& f, bool accumulate) {
  Matrix c(f.m, f.n, 3, 3), before = c;
  f.multiply(unit, 0, 0, f.m, f.n, accumulate, c);
  bool close = true, intact = true;
  for (std::int64_t i = 0; i < f.m; ++i) {
    for (std::int64_t j = 0; j < f.n; ++j) {
      double sum = accumulate ? before.at(i, j) : 0, size = std::fabs(sum);
      for (std::int64_t l = 0; l < f.k; ++l) {
        const double term =
            static_cast<double>(Bf16::round(f.left(i, l)).value()) * Bf16::round(f.right(l, j)).value();
        sum += term;
        size += std::fabs(term);
      }
      close &= std::fabs(c.at(i, j) - sum) <= 1.01 * static_cast<double>(f.k + 2) * 0x1p-24 * size;
    }
    for (std::int64_t j = f.n; j < c.stride; ++j) intact &= std::isnan(c.at(i, j));
  }
  check(close, text(unit.name, " ", f.name(), accumulate ? " accumulated" : "", ": elements"));
  check(intact, text(unit.name, " ", f.name(), ": memory between rows"));
}

bool same_bits(const Matrix& a, const Matrix& b) {
  return std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)) == 0;
}

// Any rectangle of C has the bits that it has in the whole, and so has one whose factors are packed beforehand.
void has_the_same_bits_in_parts(const Bf16Unit& unit, Factors& f, bool add) {
  const std::string name = text(unit.name, " ", f.name(), add ? " accumulated" : "");
  Matrix whole(f.m, f.n, 0, 4), parts = whole, tiles = whole;
  f.multiply(unit, 0, 0, f.m, f.n, add, whole);
  const std::int64_t row = f.m / 3, col = 2 * f.n / 5;
  f.multiply(unit, 0, 0, row, f.n, add, parts);
  f.multiply(unit, row, 0, f.m - row, col, add, parts);
  f.multiply(unit, row, col, f.m - row, f.n - col, add, parts);
  check(same_bits(whole, parts), name + ": bits of parts");

  std::vector<std::byte> memory(Bf16Product::bytes(f.m, f.n, f.k));
  const Bf16Product product(unit, f.left_lines(), f.right_lines(), f.m, f.n, f.k, memory.data());
  for (std::int64_t part = product.parts() - 1; part >= 0; --part) product.pack(part);
  const Cut rows(f.m, 3, kStrip), cols(f.n, 2, kStrip);
  for (std::int64_t i = 0; i < rows.parts; ++i) {
    for (std::int64_t j = 0; j < cols.parts; ++j)
      product.multiply(rows[i], cols[j], add, &tiles.at(rows[i].begin, cols[j].begin), tiles.stride);
  }
  check(same_bits(whole, tiles), name + ": bits of packed tiles");
}

void products(const Bf16Unit& unit) {
  const std::int64_t sizes[][3] = {{1, 1, 1},      {1, 70, 5},     {33, 1, 17},   {5, 3, 130},
                                   {7, 48, 2},     {16, 16, 32},   {32, 64, 64},  {31, 33, 31},
                                   {65, 97, 161},  {100, 25, 64},  {64, 25, 100}, {3, 16, 513},
                                   {17, 49, 1100}, {130, 530, 40}, {257, 20, 515}};
  for (const auto& [m, n, k] : sizes) {
    for (int ways = 0; ways < 8; ++ways) {
      Factors f((ways & 1) != 0, (ways & 2) != 0, m, n, k, ways % 3);
      is_the_product(unit, f, (ways & 4) != 0);
      has_the_same_bits_in_parts(unit, f, (ways & 4) != 0);
    }
  }
}

// ---- rounding

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

// A number times 1, on either side, is the number rounded; at and beside the ties of every exponent.
void rounds(const Bf16Unit& unit) {
  std::vector<float> numbers;
  for (std::uint32_t high = 0; high < 0x10000; high += 37) {
    for (const std::uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      FloatBits wide;
      for (const std::uint32_t odd : {0u, 1u}) {
        wide.bits = ((high & 0xfffeu) | odd) << 16 | low;
        numbers.push_back(wide.value);
      }
    }
  }
  const auto count = static_cast<std::int64_t>(numbers.size());
  const float one = 1;
  for (const bool left : {true, false}) {
    std::vector<float> c(numbers.size(), kPoison);
    {
      FlushDenormals flush;
      const Lines values{numbers.data(), 1, true}, ones{&one, 1, true};
      unit.multiply(left ? values : ones, left ? ones : values, left ? count : 1, left ? 1 : count, 1, false,
                    c.data(), left ? 1 : count);
    }
    int wrong = 0;
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      const float expected = Bf16::round(numbers[i]).value();
      if (std::isnan(expected))
        wrong += !std::isnan(c[i]);
      else if (std::fabs(expected) <= std::numeric_limits<float>::min())
        wrong += std::fabs(c[i]) > std::fabs(expected);  // a denormal may be flushed before or after
      else
        wrong += bits_of(c[i]) != bits_of(expected);
    }
    check(wrong == 0,
          text(unit.name, ": ", wrong, " of ", count, " roundings on the ", left ? "left" : "right"));
  }
}

// NaN and infinity reach the elements of their row or column, and no others.
void stays_visible(const Bf16Unit& unit) {
  for (int ways = 0; ways < 4; ++ways) {
    Factors f((ways & 1) != 0, (ways & 2) != 0, 37, 51, 45, 1);
    f.left(20, 44) = kPoison;
    f.left(36, 3) = std::numeric_limits<float>::infinity();
    f.right(7, 50) = kPoison;
    Matrix c(f.m, f.n, 0, 5);
    f.multiply(unit, 0, 0, f.m, f.n, false, c);
    int wrong = 0;
    for (std::int64_t i = 0; i < f.m; ++i) {
      for (std::int64_t j = 0; j < f.n; ++j) {
        const bool nan = i == 20 || j == 50;
        wrong += nan       ? !std::isnan(c.at(i, j))
                 : i == 36 ? !std::isinf(c.at(i, j))
                           : !std::isfinite(c.at(i, j));
      }
    }
    check(wrong == 0, text(unit.name, " ", f.name(), ": ", wrong, " elements near NaN"));
  }
}

}  // namespace

int main() {
  std::vector<Bf16Unit> units = bf16_units();
  units.push_back({"tiles in plain C++", multiply_plain, pack_blocks<PlainUnit>, multiply_packed<PlainUnit>});
  for (const Bf16Unit& unit : units) {
    std::printf("%s\n", unit.name);
    products(unit);
    rounds(unit);
    stays_visible(unit);
  }
  return verdict("bf16_test");
}
