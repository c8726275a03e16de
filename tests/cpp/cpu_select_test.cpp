// The CPU's selections against sorting: of each row and of the whole matrix, for any k, in any number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "cpu/pool.h"
#include "testing.h"

namespace {

using namespace fastsae;

// Small integers, whose products are exact and full of ties, and a few NaN.
template <class S>
struct Problem {
  std::int64_t rows, width, latents;
  bool biased, scaled;
  std::vector<S> x, weight, bias, scale, z;
  std::vector<std::int64_t> all, of_rows;  // elements of z in their order: of the whole and of each row

  Problem(std::int64_t rows_, std::int64_t width_, std::int64_t latents_, bool biased_, bool scaled_,
          bool has_nan, std::uint32_t seed)
      : rows(rows_), width(width_), latents(latents_), biased(biased_), scaled(scaled_) {
    Numbers source(seed);
    const auto some = [&](std::int64_t count, int low) {
      std::vector<S> values(static_cast<std::size_t>(count));
      for (S& value : values) value = static_cast<S>(std::floor(source.between(low, 4)));
      return values;
    };
    x = some(rows * width, -3), weight = some(latents * width, -3), bias = some(latents, -3);
    scale = some(latents, 0);
    if (has_nan) weight[source.bits() % weight.size()] = std::numeric_limits<S>::quiet_NaN();
    z.resize(static_cast<std::size_t>(rows * latents));
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < latents; ++col) {
        S sum = 0;
        for (std::int64_t i = 0; i < width; ++i) sum += x[row * width + i] * weight[col * width + i];
        z[row * latents + col] = (sum + (biased ? bias[col] : S(0))) * (scaled ? scale[col] : S(1));
      }
    }
    for (std::int64_t i = 0; i < rows * latents; ++i) all.push_back(i);
    of_rows = all;
    const auto before = [this](std::int64_t a, std::int64_t b) {
      const bool a_nan = std::isnan(z[a]), b_nan = std::isnan(z[b]);
      return a_nan != b_nan ? a_nan : !a_nan && z[a] > z[b];
    };
    std::stable_sort(all.begin(), all.end(), before);
    for (std::int64_t row = 0; row < rows; ++row)
      std::stable_sort(of_rows.begin() + row * latents, of_rows.begin() + (row + 1) * latents, before);
  }

  Tensor tensor(std::vector<S>& of, std::int64_t r, std::int64_t c) const {
    return {of.data(), r, c, c, dtype_of<S>};
  }
  Tensor row_of(bool there, std::vector<S>& of) const {
    return there ? Tensor{of.data(), 1, latents, latents, dtype_of<S>} : Tensor{};
  }
};

template <class S>
bool same(S a, S b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

template <class S>
void selects_rows(Backend& backend, Problem<S>& p, std::int64_t k, bool by_column, const std::string& name) {
  const auto size = static_cast<std::size_t>(p.rows * k);
  std::vector<S> values(size);
  std::vector<std::int32_t> indices(size);
  backend.encode_select({p.tensor(p.x, p.rows, p.width),
                         p.tensor(p.weight, p.latents, p.width),
                         p.row_of(p.biased, p.bias),
                         p.tensor(values, p.rows, k),
                         {indices.data(), p.rows, k, k, DType::i32},
                         p.row_of(p.scaled, p.scale),
                         by_column});
  bool right = true;
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const auto first = p.of_rows.begin() + row * p.latents;
    std::vector<std::int64_t> order(first, first + k);
    if (by_column) std::sort(order.begin(), order.end());
    for (std::int64_t i = 0; i < k; ++i)
      right = right && indices[row * k + i] == order[i] - row * p.latents &&
              same(values[row * k + i], p.z[order[i]]);
  }
  check(right, name + (by_column ? ": rows, by column" : ": rows"));
}

template <class S>
void selects_batch(Backend& backend, Problem<S>& p, std::int64_t count, double hint,
                   const std::string& name) {
  std::vector<S> values(static_cast<std::size_t>(count), S(-7));
  std::vector<std::int32_t> columns(static_cast<std::size_t>(count), -7),
      starts(static_cast<std::size_t>(p.rows + 1), -7);
  double smallest = -7;
  backend.encode_select_batch({p.tensor(p.x, p.rows, p.width),
                               p.tensor(p.weight, p.latents, p.width),
                               p.row_of(p.biased, p.bias),
                               p.row_of(p.scaled, p.scale),
                               count,
                               {starts.data(), 1, p.rows + 1, p.rows + 1, DType::i32},
                               {columns.data(), 1, count, count, DType::i32},
                               {values.data(), 1, count, count, dtype_of<S>},
                               &smallest,
                               &hint});
  std::vector<std::int64_t> wanted(p.all.begin(), p.all.begin() + count);
  while (!wanted.empty() && p.z[wanted.back()] <= 0) wanted.pop_back();
  const double least = wanted.empty() ? 0 : static_cast<double>(p.z[wanted.back()]);
  std::sort(wanted.begin(), wanted.end());
  const std::string what = text(name, ": batch of ", count, " hint ", hint);
  check(same(smallest, least), text(what, ": smallest ", smallest, ", expected ", least));
  check(starts[0] == 0 && starts[p.rows] == static_cast<std::int64_t>(wanted.size()),
        text(what, ": kept ", starts[p.rows], ", expected ", wanted.size()));
  bool right = true;
  for (std::int64_t row = 0, i = 0; row < p.rows && right; ++row) {
    for (; right && i < starts[row + 1]; ++i)
      right = i < static_cast<std::int64_t>(wanted.size()) && columns[i] + row * p.latents == wanted[i] &&
              same(values[i], p.z[wanted[i]]);
  }
  check(right, what);
  for (std::size_t i = wanted.size(); i < values.size(); ++i)
    right = right && values[i] == S(-7) && columns[i] == -7;
  check(right, what + ": nothing behind it is written");
}

template <class S>
void every_shape(Backend& backend) {
  // Rows, width, latents: borders of tiles, of slabs and of the rows that are taken at once.
  const std::int64_t shapes[][3] = {{1, 1, 1},     {1, 3, 20000}, {2, 5, 33},    {3, 4, 513},
                                    {7, 9, 1025},  {40, 6, 1613}, {257, 3, 700}, {5, 400, 90},
                                    {4099, 2, 60}, {9, 200, 3000}};
  std::uint32_t seed = 1;
  for (const auto& [rows, width, latents] : shapes) {
    for (int kind = 0; kind < 4; ++kind) {
      Problem<S> p(rows, width, latents, kind % 2 == 1, kind / 2 == 1, kind == 3, ++seed);
      for (const int threads : {1, 2, 3, 8}) {
        cpu::set_num_threads(threads);
        const std::string name = text(threads, " threads, f", 8 * sizeof(S), " ", rows, " x ", width, " x ",
                                      latents, " kind ", kind);
        for (const std::int64_t k : {std::int64_t{1}, std::int64_t{7}, latents / 2, latents - 1, latents}) {
          if (k < 1 || k > latents) continue;
          selects_rows(backend, p, k, (kind + threads) % 2 == 0, name + text(" k ", k));
        }
        for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, 3 * rows, rows * latents}) {
          const double hints[] = {0, 5, 1e-30, 1e300, std::nan("")};
          for (const double hint : hints)
            if (count <= rows * latents) selects_batch(backend, p, count, hint, name);
        }
      }
    }
  }
}

}  // namespace

int main() {
  const std::unique_ptr<Backend> backend = make_backend("cpu", Precision::full, {});
  every_shape<float>(*backend);
  every_shape<double>(*backend);
  return verdict("cpu_select");
}
