// Selection from rounded scores: the bounds hold for every element, and what is selected has the bits of the product in
// float32, whatever the numbers are.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "cpu/bf16.h"
#include "cpu/float_mode.h"
#include "cpu/loops.h"
#include "cpu/panels.h"
#include "cpu/pool.h"
#include "cpu/score_bounds.h"
#include "cpu/select.h"
#include "cpu/select_rows.h"
#include "testing.h"

namespace {

using namespace fastsae;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

enum class Kind {
  plain,
  offset,       // far from 0, so that the bounds are wide
  one_feature,  // which is large in some rows
  any_size,     // of rows, of latents and of numbers in them
  tiny,
  tiny_rows,     // of large latents
  tiny_latents,  // and the other way round
  huge,
  ties,  // latents that are equal, and rows of zeros
  not_finite,
};
constexpr const char* kNames[] = {"plain",     "offset",       "one feature", "any size", "tiny",
                                  "tiny rows", "tiny latents", "huge",        "ties",     "not finite"};

struct Problem {
  std::int64_t rows, width, latents;
  std::vector<float> x, weight, bias, scale, z;

  Problem(Kind kind, std::int64_t rows_, std::int64_t width_, std::int64_t latents_)
      : rows(rows_), width(width_), latents(latents_) {
    Numbers source(static_cast<std::uint32_t>(100 * rows + width + static_cast<int>(kind)));
    const auto normal = [&] {  // near enough
      double sum = 0;
      for (int i = 0; i < 4; ++i) sum += source.between(-1, 1);
      return static_cast<float>(sum);
    };
    const auto some = [&](std::int64_t count) {
      std::vector<float> values(static_cast<std::size_t>(count));
      for (float& value : values) value = normal();
      return values;
    };
    const auto power = [&](int most) {
      return std::ldexp(1.0f, static_cast<int>(source.between(-most, most)));
    };
    x = some(rows * width), weight = some(latents * width), bias = some(latents), scale = some(latents);
    for (float& factor : scale) factor = std::fabs(factor);
    const auto each_row = [&](std::vector<float>& of, const auto& change) {
      for (std::int64_t i = 0; i < static_cast<std::int64_t>(of.size()) / width; ++i)
        change(i, &of[i * width]);
    };
    const auto multiply = [&](std::vector<float>& of, float factor) {
      for (float& value : of) value *= factor;
    };
    if (kind == Kind::offset) {
      for (float& value : x) value += 20;
    } else if (kind == Kind::one_feature) {
      each_row(x, [&](std::int64_t row, float* line) { line[3] *= row % 9 == 0 ? 3000.0f : 1.0f; });
    } else if (kind == Kind::any_size) {
      for (std::vector<float>* of : {&x, &weight})
        each_row(*of, [&](std::int64_t, float* line) {
          const float size = power(20);
          for (std::int64_t i = 0; i < width; ++i) line[i] *= size * power(12);
        });
    } else if (kind == Kind::tiny) {
      multiply(x, 0x1p-70f), multiply(weight, 0x1p-60f), multiply(bias, 0x1p-126f);
    } else if (kind == Kind::tiny_rows || kind == Kind::tiny_latents) {
      multiply(kind == Kind::tiny_rows ? x : weight, 0x1p-66f);
      multiply(kind == Kind::tiny_rows ? weight : x, 0x1p58f);
      multiply(bias, 0x1p-8f);
    } else if (kind == Kind::huge) {
      multiply(x, 0x1p62f), multiply(weight, 0x1p62f), multiply(bias, 0x1p120f);
    } else if (kind == Kind::ties) {
      each_row(weight, [&](std::int64_t row, float* line) {
        if (row % 3 != 0) std::copy_n(&weight[row / 3 * 3 * width], width, line);
      });
      each_row(x, [&](std::int64_t row, float* line) {
        if (row % 5 == 0) std::fill_n(line, width, 0.0f);
      });
      for (std::int64_t i = 0; i < latents; ++i) bias[i] = bias[i / 3 * 3], scale[i] = scale[i / 3 * 3];
    } else if (kind == Kind::not_finite) {
      weight[latents / 2 * width + 1] = kNan, weight[latents / 3 * width] = kInfinity;
      bias[latents / 4] = kNan, bias[5] = -kInfinity, scale[7] = kInfinity;
      x[2 * width] = kNan, x[3 * width + 1] = -kInfinity, x[4 * width] = std::numeric_limits<float>::max();
    }
    multiply_all();
  }

  void multiply_all() {
    cpu::FlushDenormals flush;
    z.resize(static_cast<std::size_t>(rows * latents));
    cpu::panel_gemm<float>(
        {false, true, rows, latents, width, x.data(), width, weight.data(), width, false, z.data(), latents});
  }

  Tensor tensor(std::vector<float>& of, std::int64_t r, std::int64_t c) const {
    return {of.data(), r, c, c, DType::f32};
  }
  // As keys, which are equal where values are.
  std::vector<std::uint32_t> keys(bool biased, bool scaled) const {
    cpu::FlushDenormals flush;
    std::vector<std::uint32_t> all(z.size());
    for (std::size_t i = 0; i < z.size(); ++i) {
      const std::size_t col = i % static_cast<std::size_t>(latents);
      all[i] = selection_key((z[i] + (biased ? bias[col] : 0.0f)) * (scaled ? scale[col] : 1.0f));
    }
    return all;
  }
};

void bounds_hold(Problem& p, cpu::Scratch& scratch, const cpu::Parallel& parallel, const std::string& name) {
  const cpu::FlushDenormals flush;
  const Tensor x = p.tensor(p.x, p.rows, p.width), weight = p.tensor(p.weight, p.latents, p.width);
  const cpu::ScoreBounds bounds(x, weight, Tensor{}, scratch, parallel);
  std::vector<float> rounded(p.z.size());
  for (const cpu::Bf16Unit& unit : cpu::bf16_units()) {
    unit.multiply({p.x.data(), p.width, true}, {p.weight.data(), p.width, true}, p.rows, p.latents, p.width,
                  false, rounded.data(), p.latents);
    std::int64_t beyond = 0;
    double most = 0;
    for (std::int64_t row = 0; row < p.rows; ++row) {
      for (std::int64_t col = 0; col < p.latents; ++col) {
        const double bound = static_cast<double>(bounds.reach()[row]) * bounds.margin()[col];
        const double apart =
            std::fabs(static_cast<double>(rounded[row * p.latents + col]) - p.z[row * p.latents + col]);
        if (!std::isfinite(bound)) continue;
        beyond += apart <= bound ? 0 : 1;
        most = std::max(most, apart / bound);
      }
    }
    check(beyond == 0, text(name, " ", unit.name, ": ", beyond, " elements beyond their bounds, at most ",
                            most, " times"));
    if (name.starts_with("plain"))
      check(most > 0.02, text(name, " ", unit.name, ": bounds are ", 1 / most, " times too wide"));
  }
}

// Of each row the places of its `most` first elements, in their order.
std::vector<std::int64_t> first_of_rows(const Problem& p, const std::vector<std::uint32_t>& keys,
                                        std::int64_t most) {
  std::vector<std::int64_t> all, order(static_cast<std::size_t>(p.latents));
  for (std::int64_t row = 0; row < p.rows; ++row) {
    const std::uint32_t* of = keys.data() + row * p.latents;
    for (std::int64_t i = 0; i < p.latents; ++i) order[i] = i;
    std::partial_sort(order.begin(), order.begin() + most, order.end(),
                      [&](std::int64_t a, std::int64_t b) { return comes_before(of[a], a, of[b], b); });
    all.insert(all.end(), order.begin(), order.begin() + most);
  }
  return all;
}

void selects_rows(Problem& p, const std::vector<std::int64_t>& ks, bool biased, bool scaled,
                  cpu::Scratch& scratch, const cpu::Parallel& parallel, const std::string& name) {
  const std::vector<std::uint32_t> keys = p.keys(biased, scaled);
  const std::int64_t most = *std::max_element(ks.begin(), ks.end());
  const std::vector<std::int64_t> order = first_of_rows(p, keys, most);
  for (const std::int64_t k : ks) {
    std::vector<float> values(static_cast<std::size_t>(p.rows * k), -7);
    std::vector<std::int32_t> indices(values.size(), -7);
    const Selection selection{p.tensor(p.x, p.rows, p.width),
                              p.tensor(p.weight, p.latents, p.width),
                              biased ? p.tensor(p.bias, 1, p.latents) : Tensor{},
                              p.tensor(values, p.rows, k),
                              {indices.data(), p.rows, k, k, DType::i32},
                              scaled ? p.tensor(p.scale, 1, p.latents) : Tensor{}};
    const cpu::FlushDenormals flush;
    cpu::RoundingTrials trials;
    cpu::encode_select_rounded(selection, trials, scratch, parallel);
    std::int64_t wrong = 0;
    for (std::int64_t row = 0; row < p.rows; ++row) {
      for (std::int64_t i = 0; i < k; ++i) {
        const std::int64_t wanted = order[row * most + i], got = indices[row * k + i];
        wrong +=
            got == wanted && selection_key(values[row * k + i]) == keys[row * p.latents + wanted] ? 0 : 1;
      }
    }
    check(wrong == 0, text(name, " k ", k, ": ", wrong, " elements are wrong"));
  }
}

void selects_batch(Problem& p, std::int64_t count, bool biased, bool scaled, const std::string& name) {
  const std::vector<std::uint32_t> keys = p.keys(biased, scaled);
  std::vector<std::int64_t> order(keys.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
  std::partial_sort(order.begin(), order.begin() + count, order.end(),
                    [&](std::int64_t a, std::int64_t b) { return comes_before(keys[a], a, keys[b], b); });
  order.resize(static_cast<std::size_t>(count));
  while (!order.empty() && keys[order.back()] <= selection_key(0.0f)) order.pop_back();
  std::sort(order.begin(), order.end());
  for (const double hint : {0.0, 1.0, 1e30}) {
    std::vector<float> values(static_cast<std::size_t>(count));
    std::vector<std::int32_t> columns(values.size()), starts(static_cast<std::size_t>(p.rows + 1));
    double smallest = -7;
    // A backend that has seen no rows yet tries rounding.
    make_backend("cpu", Precision::full, {})
        ->encode_select_batch({p.tensor(p.x, p.rows, p.width),
                               p.tensor(p.weight, p.latents, p.width),
                               biased ? p.tensor(p.bias, 1, p.latents) : Tensor{},
                               scaled ? p.tensor(p.scale, 1, p.latents) : Tensor{},
                               count,
                               {starts.data(), 1, p.rows + 1, p.rows + 1, DType::i32},
                               {columns.data(), 1, count, count, DType::i32},
                               p.tensor(values, 1, count),
                               &smallest,
                               &hint});
    std::int64_t wrong = starts[p.rows] == static_cast<std::int64_t>(order.size()) ? 0 : 1;
    for (std::int64_t row = 0; row < p.rows && wrong == 0; ++row) {
      for (std::int64_t i = starts[row]; i < starts[row + 1]; ++i)
        wrong +=
            columns[i] + row * p.latents == order[i] && selection_key(values[i]) == keys[order[i]] ? 0 : 1;
    }
    check(wrong == 0, text(name, " batch of ", count, " hint ", hint, ": ", wrong, " elements are wrong"));
  }
}

// Norms that are finite in float32, of factors whose rounded product is not.
void overflow_is_foreseen(cpu::Scratch& scratch, const cpu::Parallel& parallel) {
  constexpr std::int64_t kRows = 256, kWidth = 128, kLatents = 2000;
  Problem p(Kind::plain, kRows, kWidth, kLatents);
  std::fill(p.weight.begin(), p.weight.end(), 0.0f);
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t i = 0; i < kWidth; ++i)
      p.x[row * kWidth + i] = std::ldexp(i >= 60 && i <= 62 ? 1.2891f : 1.00396f, i < 41 ? 61 : 60);
  }
  float share = 0;  // of 2^128, that the product takes
  for (std::int64_t i = 0; i < kWidth; ++i) share += std::ldexp(p.x[i], -64) * std::ldexp(p.x[i], -64);
  check(share > 0.99f && share < 0.997f, text("overflow: the norm's square is ", share, " of 2^128"));
  for (const float sign : {1.0f, -1.0f}) {
    for (std::int64_t i = 0; i < kWidth; ++i) p.weight[777 * kWidth + i] = sign * p.x[i];
    std::fill(p.bias.begin(), p.bias.end(), sign > 0 ? 0.0f : std::ldexp(-0.9999f, 118));
    p.bias[777] = 0;
    std::fill(p.scale.begin(), p.scale.end(), 1.0f);
    p.scale[777] = 0x1p-10f;
    p.bias[5] = std::ldexp(sign > 0 ? share + 0.003f : -share - 0.001f, 118);
    p.bias[6] = std::ldexp(sign > 0 ? share + 0.002f : -0.9999f, 118);
    p.multiply_all();
    selects_rows(p, {sign > 0 ? 2 : 1}, true, true, scratch, parallel, text("overflow ", sign));
  }
}

// What is -inf with its bias is no number after a scale of 0, and comes first.
void biases_may_overflow(cpu::Scratch& scratch, const cpu::Parallel& parallel) {
  constexpr std::int64_t kRows = 256, kWidth = 128, kLatents = 2000;
  Problem p(Kind::plain, kRows, kWidth, kLatents);
  for (std::int64_t i = 0; i < kWidth; ++i) p.x[i] = std::ldexp(p.x[i], 45);
  double square = 0;
  for (std::int64_t i = 0; i < kWidth; ++i) square += static_cast<double>(p.x[i]) * p.x[i];
  for (std::int64_t row = 1; row < kRows; ++row) std::copy_n(p.x.begin(), kWidth, p.x.begin() + row * kWidth);
  // Half of what follows the last number, and a little more: with a bound it may be a little less.
  const auto factor = static_cast<float>(std::ldexp(1.0003, 103) / square);
  for (std::int64_t i = 0; i < kWidth; ++i) p.weight[9 * kWidth + i] = -p.x[i] * factor;
  p.bias[9] = -std::numeric_limits<float>::max();
  p.scale[9] = 0;
  p.multiply_all();
  check(p.keys(true, true)[9] == selection_key(kNan), "biases: expected no number");
  selects_rows(p, {1}, true, true, scratch, parallel, "biases");
}

void elements_are_those_of_the_product() {
  for (const std::int64_t width : {1, 7, 16, 100, 384, 385, 768, 1000}) {
    Problem p(Kind::plain, 3, width, 50);
    std::vector<std::int32_t> rows;
    for (int i = 0; i < 37; ++i) rows.push_back(i * 11 % 50);
    for (std::int64_t count = 1; count <= 37; count += 4) {
      std::vector<float> got(static_cast<std::size_t>(count));
      cpu::panel_elements(p.x.data() + width, width, p.weight.data(), width, rows.data(), count, got.data());
      bool same = true;
      for (std::int64_t i = 0; i < count; ++i)
        same = same && std::memcmp(&got[i], &p.z[p.latents + rows[i]], sizeof(float)) == 0;
      check(same, text("elements, width ", width, " count ", count));
    }
  }
}

}  // namespace

int main() {
  if (cpu::has_panels()) elements_are_those_of_the_product();
  if (cpu::bf16_units().empty()) return verdict("rounded (nothing here multiplies bfloat16)");
  cpu::Scratch scratch;
  cpu::Pool pool;
  const cpu::Parallel parallel = [&](std::int64_t count, const cpu::Task& task) {
    pool.run(count, task, [] {});
  };
  const std::int64_t shapes[][3] = {{130, 200, 1100}, {150, 769, 2000}, {256, 128, 8300}, {300, 400, 2049}};
  overflow_is_foreseen(scratch, parallel);
  biases_may_overflow(scratch, parallel);
  for (int kind = 0; kind < 10; ++kind) {
    for (const auto& [rows, width, latents] : shapes) {
      Problem p(static_cast<Kind>(kind), rows, width, latents);
      const std::string of = text(kNames[kind], " ", rows, " x ", width, " x ", latents);
      bounds_hold(p, scratch, parallel, of);
      for (const int threads : {1, 8}) {
        cpu::set_num_threads(threads);
        const std::string name = text(of, ", ", threads, " threads");
        // Nearly all of them are sorted where they are few.
        const std::int64_t most = latents < 1500 ? latents - 1 : 300;
        selects_rows(p, {1, 12, 290, most}, threads > 1, threads > 1, scratch, parallel, name);
        selects_batch(p, 3 * rows, threads > 1, threads > 1, name);
      }
    }
  }
  return verdict("rounded");
}
