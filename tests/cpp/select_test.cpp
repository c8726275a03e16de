// Selection as the CUDA backend cuts and runs it, played by one thread, against sorting.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "select_tiles.h"
#include "serial_select.h"
#include "testing.h"

namespace {

using namespace fastsae;
using namespace fastsae::cuda;

using Random = std::mt19937_64;
// The score in a column of a row of n.
using Scores = std::function<double(Random&, std::int64_t col, std::int64_t n)>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
const double kNan = std::nan("");

double normal(Random& random) {  // near enough
  double sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<double>(random() >> 11) * 0x1p-53 - 0.5;
  return sum;
}

// The last member first: shows what one member reads while another one writes it.
template <class State>
class ReverseTeam {
 public:
  explicit ReverseTeam(int size) : states_(static_cast<std::size_t>(size)) {}
  template <class Phase>
  void phase(const Phase& run) {
    for (int member = static_cast<int>(states_.size()) - 1; member >= 0; --member)
      run(member, states_[member]);
  }

 private:
  std::vector<State> states_;
};

struct Distribution {
  const char* name;
  Scores score;
};

const std::vector<Distribution> kDistributions = {
    {"normal", [](Random& random, std::int64_t, std::int64_t) { return normal(random); }},
    {"few values",
     [](Random& random, std::int64_t, std::int64_t) { return static_cast<double>(random() % 5) - 2.0; }},
    {"mostly zero",
     [](Random& random, std::int64_t, std::int64_t) { return std::max(0.0, normal(random) - 0.8); }},
    {"all equal", [](Random&, std::int64_t, std::int64_t) { return -1.5; }},
    {"rising", [](Random&, std::int64_t col, std::int64_t n) { return static_cast<double>(col - n / 2); }},
    {"falling", [](Random&, std::int64_t col, std::int64_t n) { return static_cast<double>(n / 2 - col); }},
    {"rising in steps",
     [](Random&, std::int64_t col, std::int64_t) { return static_cast<double>(col / 700); }},
    {"zeros of both signs",
     [](Random& random, std::int64_t, std::int64_t) { return random() % 2 == 0 ? 0.0 : -0.0; }},
    {"not finite",
     [](Random& random, std::int64_t, std::int64_t) {
       const double some[] = {kNan, -kNan, kInfinity, -kInfinity, 0.0, -0.0, normal(random), normal(random)};
       return some[random() % 8];
     }},
    {"rare NaN",
     [](Random& random, std::int64_t, std::int64_t) { return random() % 300 == 0 ? kNan : normal(random); }},
    {"all NaN", [](Random&, std::int64_t, std::int64_t) { return kNan; }},
    {"-inf", [](Random&, std::int64_t, std::int64_t) { return -kInfinity; }},
    {"the ends of the range",
     [](Random& random, std::int64_t, std::int64_t) {
       const double tiny = std::numeric_limits<float>::denorm_min(),
                    great = std::numeric_limits<float>::max();
       const double some[] = {tiny, -tiny, great, -great, 3 * tiny, 0.0};
       return some[random() % 6];
     }},
    {"best at the end", [](Random& random, std::int64_t col,
                           std::int64_t n) { return normal(random) + (col > n - 40 ? 9.0 : 0.0); }},
};

// What comes first, found without keys.
template <class S>
bool comes_first(const std::vector<S>& row, std::int64_t a, std::int64_t b) {
  const bool a_nan = std::isnan(row[a]), b_nan = std::isnan(row[b]);
  if (a_nan != b_nan) return a_nan;
  if (!a_nan && row[a] != row[b]) return row[a] > row[b];
  return a < b;
}

template <class S>
std::vector<std::int64_t> sorted_columns(const std::vector<S>& row, std::int64_t k) {
  std::vector<std::int64_t> columns(row.size());
  for (std::size_t i = 0; i < columns.size(); ++i) columns[i] = static_cast<std::int64_t>(i);
  std::partial_sort(columns.begin(), columns.begin() + k, columns.end(),
                    [&](std::int64_t a, std::int64_t b) { return comes_first(row, a, b); });
  return columns;
}

struct Shape {
  std::int64_t rows, n, k;
};

// Scores are handed over where the backend would make them; the rest of the tile's memory is full of the greatest
// score there is.
template <class S>
void selects_as_sorting_does(Shape shape, ScoreTile tile, const Distribution& of, Random& random, bool scaled,
                             bool by_column) {
  const auto [rows, n, k] = shape;
  const std::string name =
      text(of.name, sizeof(S) == 4 ? " f32" : " f64", " rows ", rows, " n ", n, " k ", k, " tile ", tile.rows,
           " x ", tile.cols, scaled ? " scaled" : "", by_column ? " by column" : "");
  std::vector<std::vector<S>> all(static_cast<std::size_t>(rows),
                                  std::vector<S>(static_cast<std::size_t>(n)));
  for (auto& row : all) {
    for (std::int64_t col = 0; col < n; ++col) row[col] = static_cast<S>(of.score(random, col, n));
  }
  const std::int64_t stride = k + 3;  // of the outputs
  std::vector<S> values(static_cast<std::size_t>(rows * stride), S(-77));
  std::vector<std::int32_t> indices(static_cast<std::size_t>(rows * stride), -77);
  const DType dtype = dtype_of<S>;
  const auto tensor = [&](void* data, std::int64_t r, std::int64_t c, std::int64_t s, DType type) {
    Tensor view;
    view.data = data, view.rows = r, view.cols = c, view.stride = s, view.dtype = type;
    return view;
  };
  std::vector<S> scale(static_cast<std::size_t>(n));
  for (S& factor : scale) factor = static_cast<S>(random() % 3) / 2;
  Selection selection;
  if (scaled) selection.scale = tensor(scale.data(), 1, n, n, dtype);
  selection.by_column = by_column;
  S nothing = 0;  // no product is made here
  selection.x = tensor(&nothing, rows, 0, 0, dtype);
  selection.weight = tensor(&nothing, n, 0, 0, dtype);
  selection.values = tensor(values.data(), rows, k, stride, dtype);
  selection.indices = tensor(indices.data(), rows, k, stride, DType::i32);
  // At the end of its allocation, so that a sanitizer sees what is read behind it.
  const std::size_t bytes = tile.bytes(dtype);
  std::vector<std::byte> memory(bytes + 16);
  std::byte* scratch = memory.data();
  scratch += 15 - (reinterpret_cast<std::uintptr_t>(scratch) + 15) % 16;
  std::int64_t row = 0, tiles = 0;
  for_each_score_tile(
      selection, tile, scratch, [&](const Selection& part, const Tensor& scores, std::int64_t first) {
        row = part.values.as<S>() - values.data();
        check(row % stride == 0 && part.weight.rows == scores.cols && part.values.rows == scores.rows,
              name + ": a part");
        row /= stride;
        std::fill_n(scores.as<S>(), bytes / sizeof(S), static_cast<S>(kNan));
        for (std::int64_t r = 0; r < scores.rows; ++r) {
          std::copy_n(all[row + r].data() + first, scores.cols, scores.as<S>() + r * scores.stride);
        }
        select_grid(scores, first, part);
        ++tiles;
      });
  check(tiles == (rows + tile.rows - 1) / tile.rows * ((n + tile.cols - 1) / tile.cols), name + ": tiles");
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t col = 0; scaled && col < n; ++col) all[r][col] *= scale[col];
    std::vector<std::int64_t> wanted = sorted_columns(all[r], k);
    if (by_column) std::sort(wanted.begin(), wanted.begin() + k);
    for (std::int64_t i = 0; i < stride; ++i) {
      const S value = values[r * stride + i];
      const std::int32_t index = indices[r * stride + i];
      const std::string at = text(name, ": row ", r, " place ", i, " is column ", index, " value ", value);
      if (i >= k) {
        check(value == S(-77) && index == -77, at + ", which is not the selection's");
      } else {
        const S best = all[r][wanted[i]];
        check(index == wanted[i], text(at, ", expected column ", wanted[i]));
        check(std::isnan(best) ? std::isnan(value) : value == best, text(at, ", expected ", best));
      }
    }
  }
}

void both(Shape shape, ScoreTile f32_tile, ScoreTile f64_tile, const Distribution& of, Random& random) {
  const auto kind = random() % 4;
  selects_as_sorting_does<float>(shape, f32_tile, of, random, kind < 2, kind % 2 == 0);
  selects_as_sorting_does<double>(shape, f64_tile, of, random, kind >= 2, kind % 2 == 1);
}

// The first columns must be k at least.
std::int64_t whole_vectors(std::int64_t k) { return (k + 3) / 4 * 4; }

void every_distribution(Random& random) {
  const Shape shapes[] = {{1, 1, 1},    {3, 2, 2},      {2, 511, 511},  {2, 512, 512}, {2, 513, 512},
                          {1, 4096, 1}, {2, 4097, 32},  {3, 12289, 32}, {2, 9001, 33}, {1, 9001, 512},
                          {5, 1025, 1}, {1, 2048, 512}, {2, 2049, 200}};
  for (const Distribution& of : kDistributions) {
    for (const Shape& shape : shapes) {
      both(shape, score_tile(shape.rows, shape.n, DType::f32), score_tile(shape.rows, shape.n, DType::f64),
           of, random);
      // As few columns as a tile may have, then borders where nothing is even.
      both(shape, score_tile(shape.rows, shape.n, DType::f32, 1),
           score_tile(shape.rows, shape.n, DType::f64, 1), of, random);
      both(shape, {2, std::max<std::int64_t>(384, whole_vectors(shape.k))}, {2, whole_vectors(shape.k)}, of,
           random);
    }
  }
}

void many_shapes(Random& random) {
  for (int i = 0; i < 400; ++i) {
    const std::int64_t n = 1 + static_cast<std::int64_t>(random() % (i % 4 == 0 ? 12000 : 2600));
    const std::int64_t k =
        1 + static_cast<std::int64_t>(random() % std::min<std::int64_t>(n, i % 3 == 0 ? 512 : 40));
    const std::int64_t rows = 1 + static_cast<std::int64_t>(random() % 3);
    const Distribution& of = kDistributions[random() % kDistributions.size()];
    const std::int64_t cols = whole_vectors(k) + 4 * static_cast<std::int64_t>(random() % 1400);
    const ScoreTile tile{1 + static_cast<std::int64_t>(random() % 3), cols};
    both({rows, n, k}, tile, tile, of, random);
  }
}

void a_million_latents(Random& random) {
  const std::int64_t n = (std::int64_t{1} << 20) - 3;
  both({1, n, 64}, score_tile(1, n, DType::f32), score_tile(1, n, DType::f64), kDistributions[0], random);
  both({1, n, 64}, score_tile(4096, n, DType::f32), score_tile(4096, n, DType::f64), kDistributions[0],
       random);
}

void tiles_fit_their_room() {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const std::int64_t scores = kScoreBytes / static_cast<std::int64_t>(size_of(dtype));
    for (const std::int64_t rows : {1, 2, 127, 128, 1000, 1024, 1025, 4096, 32768, 100000, 1 << 24}) {
      for (const std::int64_t n : {1, 127, 129, 512, 1024, 4096, 4097, 24576, 131072, 1000001}) {
        const ScoreTile tile = score_tile(rows, n, dtype);
        const std::string name = text("tile of ", rows, " x ", n, ": ", tile.rows, " x ", tile.cols);
        check(tile.rows >= 1 && tile.rows <= rows, name + ": rows");
        check(tile.cols % 128 == 0 && tile.cols >= std::min<std::int64_t>(n, 1024), name + ": columns");
        const std::int64_t least = score_tile(rows, n, dtype, 1).cols;
        check(least >= std::min<std::int64_t>(n, SelectShape::most),
              name + ": k columns in the least of all");
        check(tile.cols < n + 128, name + ": no wider than the matrix");
        check(tile.rows * tile.cols <= scores, name + ": bytes");
        check(tile.rows == rows || tile.rows % 128 == 0, name + ": whole product tiles");
        // Not smaller than need be: twice the tile would not fit, or there is no more.
        check(4 * tile.rows * tile.cols >= scores || (tile.rows == rows && tile.cols >= n),
              name + ": too small");
      }
    }
  }
  const ScoreTile usual = score_tile(4096, 24576, DType::f32);
  check(usual.rows == 1024 && usual.cols == 4096, "the tile of 4096 x 24576");
}

void a_wrong_k_is_refused() {
  std::vector<float> data(4096);
  Selection selection;
  selection.x = {data.data(), 1, 1, 1, DType::f32};
  selection.weight = {data.data(), 4096, 1, 1, DType::f32};
  for (const std::int64_t k : {0, 513, 5000}) {
    if (k == 5000) selection.weight.rows = 300;
    selection.values = {data.data(), 1, k, k, DType::f32};
    std::string message;
    try {
      for_each_score_tile(selection, {1, 4096}, data.data(),
                          [](const Selection&, const Tensor&, std::int64_t) {});
    } catch (const ValueError& error) {
      message = error.what();
    }
    check(message.find(text("k: ", k)) == 0, text("k = ", k, ": ", message));
  }
}

void keys_come_back() {
  for (const double value : {0.0, 1.0, -1.0, 1.5e-42, -1.5e-42, 3.4e38, -3.4e38, kInfinity, -kInfinity}) {
    const float narrow = static_cast<float>(value);
    check(selection_value(selection_key(narrow)) == narrow, text("f32 ", value));
    check(selection_value(selection_key(value)) == value, text("f64 ", value));
  }
  check(std::isnan(selection_value(selection_key(static_cast<float>(kNan)))), "f32 NaN");
  check(std::isnan(selection_value(selection_key(-kNan))), "f64 NaN");
  check(!std::signbit(selection_value(selection_key(-0.0))), "-0 comes back as 0");
}

}  // namespace

int main() {
  Random random(12345);
  keys_come_back();
  tiles_fit_their_room();
  a_wrong_k_is_refused();
  every_distribution(random);
  many_shapes(random);
  a_million_latents(random);
  return verdict("select");
}
