// Matrix products of the CUDA backend without a GPU: rounding, the tiles for tensor cores with an emulated
// instruction, whole trainings with them, the choice between products, and what cuBLASLt is asked for.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "choice.h"
#include "core/error.h"
#include "cublaslt.h"
#include "emulated_cores.h"
#include "engine/engine.h"
#include "kernels/list.h"
#include "like_the_cpu.h"
#include "tensor_blocks.h"
#include "testing.h"

namespace {

using namespace fastsae;
using namespace fastsae::cuda;

constexpr double kUnit = 0x1p-24;  // of a float
constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

// ---- rounding

float float_of(std::uint32_t bits) {
  FloatBits wide;
  wide.bits = bits;
  return wide.value;
}

// The magnitude of finite or infinite bits; infinity counts as what would follow the largest number.
double magnitude(std::uint32_t bits) {
  bits &= 0x7fffffffu;
  return bits == 0x7f800000u ? 0x1p128 : static_cast<double>(float_of(bits));
}

// Every sign, exponent and kept mantissa, with what is dropped at, beside and between the ties.
template <class Round>
void rounds_to_nearest(const char* name, int dropped, bool ties_to_even, Round round) {
  const std::uint32_t step = 1u << dropped, half = step / 2;
  int wrong = 0;
  for (std::uint64_t kept = 0; kept < (std::uint64_t{1} << 32); kept += step) {
    for (const std::uint32_t rest : {0u, 1u, half - 1, half, half + 1, step - 1}) {
      const std::uint32_t bits = static_cast<std::uint32_t>(kept) | rest;
      const float value = float_of(bits), rounded = round(value);
      if (std::isnan(value)) {
        wrong += !std::isnan(rounded);
        continue;
      }
      const std::uint32_t down = static_cast<std::uint32_t>(kept),
                          up = std::isinf(value) ? down : down + step;
      const double to_down = magnitude(bits) - magnitude(down), to_up = magnitude(up) - magnitude(bits);
      const bool down_is_even = (down >> dropped) % 2 == 0;
      const bool goes_down = to_down != to_up ? to_down < to_up : ties_to_even && down_is_even;
      wrong += bits_of(rounded) != (goes_down ? down : up);
    }
  }
  check(wrong == 0, text(name, ": ", wrong, " of the roundings"));
}

void rounding() {
  rounds_to_nearest("bf16", 16, true, [](float x) { return Bf16::round(x).value(); });
  rounds_to_nearest("tf32", 13, false, [](float x) { return round_tf32(x); });
  const float largest = std::numeric_limits<float>::max();
  check(std::isinf(Bf16::round(largest).value()) && std::isinf(round_tf32(-largest)), "overflow is infinite");
  check(Bf16::round(1 + 0x1p-8f).value() == 1 && Bf16::round(1 + 0x3p-8f).value() == 1 + 0x1p-6f,
        "bf16 ties");
  check(round_tf32(1 + 0x1p-11f) == 1 + 0x1p-10f && round_tf32(-1 - 0x1p-11f) == -1 - 0x1p-10f, "tf32 ties");
}

// ---- tiles

struct Tf32Way {
  using Cores = EmulatedTf32;
  static constexpr const char* name = "tf32";
  static constexpr double unit = 0x1p-11;
  static float round(float x) { return round_tf32(x); }
};
struct Bf16Way {
  using Cores = EmulatedBf16;
  static constexpr const char* name = "bf16";
  static constexpr double unit = 0x1p-8;
  static float round(float x) { return Bf16::round(x).value(); }
};

// As launch_tensor_product and launch_product do it.
template <class Way, class Shape, class K>
void tensor_grid(const K& kernel, const Factor& a, const Factor& b, const Tensor& out, bool accumulate,
                 const Sums& sums) {
  const std::int64_t parts = (out.rows + Shape::tile - 1) / Shape::tile, count = K::sums * out.cols;
  const bool summing = K::sums > 0 && sums.into.exists();
  std::vector<double> partial(static_cast<std::size_t>(parts * count));
  for (std::int64_t part = 0; part < parts; ++part) {
    for (std::int64_t col = 0; col < out.cols; col += Shape::tile) {
      SerialTeam<TensorState<Shape>> team(Shape::members);
      TensorShared<Shape> shared;
      float* memory = reinterpret_cast<float*>(&shared);
      std::fill(memory, memory + sizeof shared / sizeof(float), kPoison);
      const Tile tile{part * Shape::tile, col, out.rows, out.cols};
      sum_tile<typename Way::Cores, Shape>(team, strided<float>(a, true), strided<float>(b, false), a.cols(),
                                           tile, shared);
      finish_tile<K, Shape>(team, kernel, accumulate, Out<float>(out), tile, shared,
                            summing ? partial.data() + part * count : nullptr);
    }
  }
  for (std::int64_t i = 0; summing && i < count; ++i) {
    add_parts(i, partial.data(), parts, count, sums.accumulate, sums.into.as<double>());
  }
}

// A matrix with poison between its rows and, for sums, its shadow.
struct Matrix {
  std::vector<float> values;
  std::vector<Bf16> shadow;
  Tensor tensor;

  Matrix(std::int64_t rows, std::int64_t cols, std::int64_t padding, std::uint32_t seed,
         std::int64_t offset = 0)
      : values(static_cast<std::size_t>(offset + rows * (cols + padding)), kPoison), shadow(values.size()) {
    Numbers source(seed);
    tensor = {values.data() + offset, rows, cols, cols + padding, DType::f32, shadow.data() + offset};
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t col = 0; col < cols; ++col) at(row, col) = static_cast<float>(source.between(-1, 1));
    }
  }
  float& at(std::int64_t row, std::int64_t col) { return tensor.view<float>()(row, col); }
  // What lies between the rows is still poison.
  bool intact() const {
    for (std::int64_t row = 0; row < tensor.rows; ++row) {
      for (std::int64_t col = tensor.cols; col < tensor.stride; ++col) {
        if (!std::isnan(tensor.view<float>()(row, col))) return false;
      }
    }
    return true;
  }
};

// Element (i, k) of the left factor or (k, j) of the right one.
float element(const Factor& factor, std::int64_t row, std::int64_t col) {
  return factor.transposed ? factor.tensor.view<float>()(col, row) : factor.tensor.view<float>()(row, col);
}

struct Case {
  std::int64_t rows, cols, inner, padding, offset;
  bool left_transposed, right_transposed, accumulate;
  std::string name() const {
    return text(rows, "x", cols, "x", inner, " padding ", padding, " offset ", offset,
                left_transposed ? " T" : " N", right_transposed ? "T" : "N",
                accumulate ? " accumulated" : "");
  }
};

Matrix factor_of(std::int64_t rows, std::int64_t cols, bool transposed, const Case& c, std::uint32_t seed) {
  return transposed ? Matrix(cols, rows, c.padding, seed, c.offset)
                    : Matrix(rows, cols, c.padding, seed, c.offset);
}

// Products of the rounded numbers are exact in float, so what is left is the error of inner + 1 additions.
template <class Way, class Shape>
void multiplies(const Case& c) {
  Matrix left = factor_of(c.rows, c.inner, c.left_transposed, c, 1);
  Matrix right = factor_of(c.inner, c.cols, c.right_transposed, c, 2);
  Matrix out(c.rows, c.cols, 3, 3);
  const Matrix before = out;
  const Factor a{left.tensor, c.left_transposed}, b{right.tensor, c.right_transposed};
  tensor_grid<Way, Shape>(Keep<float>{}, a, b, out.tensor, c.accumulate, {});
  bool close = true, shadowed = true;
  for (std::int64_t i = 0; i < c.rows; ++i) {
    for (std::int64_t j = 0; j < c.cols; ++j) {
      double sum = c.accumulate ? before.values[i * out.tensor.stride + j] : 0, size = std::fabs(sum);
      for (std::int64_t k = 0; k < c.inner; ++k) {
        const double term = static_cast<double>(Way::round(element(a, i, k))) * Way::round(element(b, k, j));
        sum += term;
        size += std::fabs(term);
      }
      close &= std::fabs(out.at(i, j) - sum) <= 1.01 * static_cast<double>(c.inner + 1) * kUnit * size;
      shadowed &= out.shadow[i * out.tensor.stride + j].bits == Bf16::round(out.at(i, j)).bits;
    }
  }
  const std::string name = text(Way::name, " tile ", Shape::tile, " ", c.name());
  check(close, name + ": elements");
  check(shadowed, name + ": shadow");
  check(out.intact(), name + ": memory between rows");
}

template <class Way, class Shape>
void tiles() {
  const std::int64_t sizes[][3] = {{1, 1, 1},    {1, 70, 5},   {33, 1, 17},   {5, 3, 130},
                                   {32, 64, 32}, {64, 64, 96}, {65, 97, 161}, {100, 36, 44}};
  for (const auto& size : sizes) {
    for (int ways = 0; ways < 8; ++ways) {
      for (const std::int64_t padding : {0, 3, 4}) {
        for (const std::int64_t offset : {0, 1}) {
          if (offset == 1 && padding == 3) continue;
          multiplies<Way, Shape>({size[0], size[1], size[2], padding, offset, (ways & 1) != 0,
                                  (ways & 2) != 0, (ways & 4) != 0});
        }
      }
    }
  }
}

// With a kernel: the elements are those of the kernel on the sums, bit for bit, and the column sums are theirs.
template <class Way, class Shape, class K>
void ends_with(const char* which, const K& kernel, std::int64_t rows, std::int64_t cols, bool accumulate) {
  const std::int64_t inner = 50;
  Matrix left(rows, inner, 0, 4), right(cols, inner, 2, 5), plain(rows, cols, 1, 6), out(rows, cols, 1, 6);
  const Factor a{left.tensor, false}, b{right.tensor, true};
  std::vector<double> sums(static_cast<std::size_t>(K::sums * cols), 0.5);
  const Tensor into{sums.data(), K::sums, cols, cols, DType::f64};
  tensor_grid<Way, Shape>(Keep<float>{}, a, b, plain.tensor, accumulate, {});
  tensor_grid<Way, Shape>(kernel, a, b, out.tensor, accumulate, {into, accumulate});
  K reference = kernel;
  fetch(reference);
  bool same = true, shadowed = true, summed = true;
  for (std::int64_t col = 0; col < cols; ++col) {
    double expected[2] = {}, size[2] = {};
    for (std::int64_t row = 0; row < rows; ++row) {
      float summand[2] = {};
      const float value = reference(row, col, plain.at(row, col), summand);
      same &= bits_of(value) == bits_of(out.at(row, col));
      shadowed &= out.shadow[row * out.tensor.stride + col].bits == Bf16::round(value).bits;
      for (int k = 0; k < K::sums; ++k) {
        expected[k] += summand[k];
        size[k] += std::fabs(summand[k]);
      }
    }
    for (int k = 0; k < K::sums; ++k) {
      const double got = sums[k * cols + col] - (accumulate ? 0.5 : 0.0);
      // A member adds up tile / lanes summands in float; what it adds that to is a double.
      const double bound = 1.01 * (Shape::tile / Shape::lanes) * kUnit * size[k] + 1e-15;
      summed &= std::fabs(got - expected[k]) <= bound;
    }
  }
  const std::string name = text(Way::name, " tile ", Shape::tile, " ", which, " ", rows, "x", cols);
  check(same, name + ": elements");
  check(shadowed, name + ": shadow");
  check(summed, name + ": sums");
}

template <class Way, class Shape>
void epilogues() {
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {70, 41}, {129, 64}}) {
    Matrix bias(1, cols, 0, 7), weight(1, rows, 0, 8), target(rows, cols, 5, 9);
    for (float& w : weight.values) w += 1.5f;
    StepScalars step{};
    step.inverse_total = 0.25;
    const float* b = bias.values.data();
    const float* w = weight.values.data();
    const View<const float> t = target.tensor.view<const float>();
    for (const bool accumulate : {false, true}) {
      ends_with<Way, Shape>("infer", Infer<float, Tanh>{b}, rows, cols, accumulate);
      ends_with<Way, Shape>("activate", Activate<float, Sigmoid, L1Penalty>{b, w}, rows, cols, accumulate);
      ends_with<Way, Shape>("output", OutputDelta<float, Sigmoid, SquaredError>{b, w, t, &step, 0.5}, rows,
                            cols, accumulate);
      ends_with<Way, Shape>("decayed", DecayedGradient<float>{t, 0.1f}, rows, cols, accumulate);
      ends_with<Way, Shape>("sparse", SparseGradient<float>{t, 0.1f, 0.2f}, rows, cols, accumulate);
    }
  }
}

// ---- trainings

// The CPU with the products of a GPU.
template <class Way, class Shape>
class RoundedDevice final : public LikeTheCpu {
 public:
  void product(Factor a, Factor b, Tensor out, bool accumulate, const Kernel* kernel, Sums sums) override {
    tensor_grid<Way, Shape>(Keep<float>{}, a, b, out, accumulate, {});
    if (kernel != nullptr) map(out, *kernel, sums);
  }
};

// What steps of gradient descent change in all parameters, one after the other.
std::vector<double> trained(std::unique_ptr<Backend> backend) {
  constexpr std::int64_t kFeatures = 70, kHidden = 67, kRows = 150;
  const ModelSpec spec = classic_model(DType::f32, kFeatures, kHidden, "sigmoid", "kl", "identity");
  Engine engine(spec, OptimizerSpec{"sgd", 0.1, 0.9, 0.9, 0.999, 1e-8}, std::move(backend), 0);
  const std::vector<std::string> names{"W1", "b1", "W2", "b2"};
  std::vector<float> before, after;
  for (const std::string& name : names) {
    Matrix values(1, engine.tensor(name).size(), 0, 20 + static_cast<std::uint32_t>(before.size()));
    for (float& value : values.values) value *= 0.2f;
    engine.write(name, values.values.data());
    before.insert(before.end(), values.values.begin(), values.values.end());
  }
  Matrix x(kRows, kFeatures, 0, 11);
  const RowSource rows{x.values.data(), kRows, kFeatures, kFeatures * 4, DType::f32};
  for (int epoch = 0; epoch < 4; ++epoch) engine.run({rows}, nullptr, kRows, 50);
  for (const std::string& name : names) {
    std::vector<float> values(static_cast<std::size_t>(engine.tensor(name).size()));
    engine.read(name, values.data());
    after.insert(after.end(), values.begin(), values.end());
  }
  std::vector<double> change;
  for (std::size_t i = 0; i < before.size(); ++i) change.push_back(static_cast<double>(after[i]) - before[i]);
  return change;
}

// From the rows to a gradient there are four products, and each rounds two factors by a relative `unit` at most:
// in norm the change is off by eight units at most where nothing cancels, and by no more than twice that here. It is
// off by a hundredth of one at least: the roundings of single numbers average out, but they are there.
template <class Way, class Shape>
void trains(const std::vector<double>& full) {
  const std::vector<double> rounded = trained(std::make_unique<RoundedDevice<Way, Shape>>());
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < full.size(); ++i) {
    difference += (rounded[i] - full[i]) * (rounded[i] - full[i]);
    size += full[i] * full[i];
  }
  const double drift = std::sqrt(difference / size) / Way::unit;
  std::printf("%s tile %d: 12 steps drift by %.3f units\n", Way::name, Shape::tile, drift);
  check(drift > 0.01 && drift < 16,
        text(Way::name, " tile ", Shape::tile, ": training drifts by ", drift, " units"));
}

// ---- the choice

void choice() {
  const auto choose = [](std::int64_t rows, std::int64_t cols, std::int64_t inner, Precision precision,
                         bool library, bool shadows = true, DType dtype = DType::f32) {
    return choose_product({rows, cols, inner, dtype, shadows}, precision, library);
  };
  constexpr auto full = Precision::full, tf32 = Precision::tf32, bf16 = Precision::bf16;
  check(choose(256, 196, 784, tf32, true) == Means::small_tiles, "small shapes are ours");
  check(choose(1024, 1024, 1024, bf16, true) == Means::large_tiles, "up to 1024 is ours");
  for (const std::int64_t large : {1025, 4096}) {
    for (const Precision precision : {full, tf32, bf16}) {
      check(choose(large, 8, 8, precision, true) == Means::cublaslt, "many rows go to the library");
      check(choose(8, large, 8, precision, true) == Means::cublaslt, "many columns go to the library");
      check(choose(8, 8, large, precision, true) == Means::cublaslt,
            "a long inner dimension goes to the library");
      check(choose(large, 8, 8, precision, false) != Means::cublaslt, "without the library all is ours");
    }
    check(choose(large, large, 8, bf16, true, false) == Means::large_tiles, "without shadows bf16 is ours");
    check(choose(large, large, 8, tf32, true, false) == Means::cublaslt, "tf32 needs no shadows");
  }
  check(choose(100, 64, 64, full, true) == Means::plain, "full precision has plain tiles");
  check(choose(256, 196, 784, full, true) == Means::cublaslt, "for small products");
  check(choose(256, 196, 784, full, false) == Means::plain, "or without the library");
  check(choose(4096, 4096, 64, full, false) == Means::plain, "of any size");
  check(choose(64, 64, 64, tf32, true, false, DType::f64) == Means::plain, "doubles are never rounded");
  check(choose(64 * 10, 64 * 10, 64, tf32, false) == Means::large_tiles, "a hundred large tiles are enough");
  check(choose(64 * 10, 64 * 9, 64, tf32, false) == Means::small_tiles, "ninety are not");
}

// ---- cuBLASLt, played by a library that computes what it is asked for, column by column

namespace fake {

struct Description {
  lt::Compute compute;
  lt::DataType scale;
  std::int32_t transpose[2] = {0, 0};
};
struct Layout {
  lt::DataType type;
  std::int64_t rows, cols, stride;
};
struct Preference {
  std::uint64_t workspace = 0;
  std::uint32_t schemes = 7, alignment[4] = {256, 256, 256, 256};
};

int alive, choices, handles;
bool starts, chooses;
Description described;
Preference preferred;
std::uint64_t workspace_needed;
std::byte workspace_memory[1];

template <class T>
lt::Status give(lt::Opaque* to, T value) {
  ++alive;
  *to = new T(value);
  return 0;
}
template <class T>
lt::Status take(lt::Opaque what) {
  --alive;
  delete static_cast<T*>(what);
  return 0;
}

double number(const void* data, lt::DataType type, std::int64_t i) {
  if (type == lt::kDouble) return static_cast<const double*>(data)[i];
  if (type == lt::kBf16) return static_cast<const Bf16*>(data)[i].value();
  return static_cast<const float*>(data)[i];
}

lt::Status multiply(lt::Opaque, lt::Opaque description, const void* alpha, const void* a, lt::Opaque a_layout,
                    const void* b, lt::Opaque b_layout, const void* beta, const void* c, lt::Opaque, void* d,
                    lt::Opaque d_layout, const lt::Algorithm* algorithm, void* workspace, std::size_t bytes,
                    CUstream_st*) {
  const auto& how = *static_cast<Description*>(description);
  const auto &la = *static_cast<Layout*>(a_layout), &lb = *static_cast<Layout*>(b_layout);
  const auto& ld = *static_cast<Layout*>(d_layout);
  check(algorithm->data[0] == 42 && c == d,
        "the algorithm is the one that was chosen, and it works in place");
  check(workspace == workspace_memory && bytes >= workspace_needed, "the workspace is there");
  described = how;
  const std::int64_t inner = how.transpose[0] ? la.rows : la.cols;
  check((how.transpose[0] ? la.cols : la.rows) == ld.rows &&
            (how.transpose[1] ? lb.rows : lb.cols) == ld.cols &&
            (how.transpose[1] ? lb.cols : lb.rows) == inner,
        "the shapes fit");
  for (std::int64_t i = 0; i < ld.rows; ++i) {
    for (std::int64_t j = 0; j < ld.cols; ++j) {
      double sum = 0;
      for (std::int64_t k = 0; k < inner; ++k) {
        sum += number(a, la.type, how.transpose[0] ? i * la.stride + k : k * la.stride + i) *
               number(b, lb.type, how.transpose[1] ? k * lb.stride + j : j * lb.stride + k);
      }
      const std::int64_t at = j * ld.stride + i;
      const double times = number(beta, how.scale, 0);
      const double value =
          number(alpha, how.scale, 0) * sum + (times == 0 ? 0 : times * number(c, ld.type, at));
      if (ld.type == lt::kDouble)
        static_cast<double*>(d)[at] = value;
      else
        static_cast<float*>(d)[at] = static_cast<float>(value);
    }
  }
  return 0;
}

const lt::Functions functions{
    [] { return std::size_t{130101}; },
    [](lt::Opaque* handle) { return ++handles, starts ? give(handle, 0) : 1; },
    take<int>,
    [](lt::Opaque* to, lt::Compute compute, lt::DataType scale) {
      return give(to, Description{compute, scale});
    },
    take<Description>,
    [](lt::Opaque to, lt::DescriptionAttribute which, const void* value, std::size_t size) -> lt::Status {
      if (size != 4) return 7;
      std::memcpy(&static_cast<Description*>(to)->transpose[which - lt::kTransposeA], value, size);
      return 0;
    },
    [](lt::Opaque* to, lt::DataType type, std::uint64_t rows, std::uint64_t cols, std::int64_t stride) {
      return give(to, Layout{type, static_cast<std::int64_t>(rows), static_cast<std::int64_t>(cols), stride});
    },
    take<Layout>,
    [](lt::Opaque* to) { return give(to, Preference{}); },
    take<Preference>,
    [](lt::Opaque to, lt::PreferenceAttribute which, const void* value, std::size_t size) -> lt::Status {
      auto& preference = *static_cast<Preference*>(to);
      if (size != (which == lt::kMostWorkspace ? 8 : 4)) return 7;
      void* at = which == lt::kMostWorkspace      ? static_cast<void*>(&preference.workspace)
                 : which == lt::kReductionSchemes ? &preference.schemes
                                                  : &preference.alignment[which - lt::kAlignmentA];
      std::memcpy(at, value, size);
      return 0;
    },
    [](lt::Opaque, lt::Opaque, lt::Opaque, lt::Opaque, lt::Opaque, lt::Opaque, lt::Opaque preference,
       int wanted, lt::Heuristic results[], int* found) -> lt::Status {
      ++choices;
      preferred = *static_cast<Preference*>(preference);
      check(wanted == 1, "one algorithm is asked for");
      results[0] = {};
      results[0].algorithm.data[0] = 42;
      results[0].workspace = workspace_needed;
      *found = chooses ? 1 : 0;
      return chooses ? 0 : 15;
    },
    multiply};

Memory workspace(std::size_t bytes) {
  check(bytes == std::size_t{32} << 20, "the workspace has 32 MiB");
  return Memory(workspace_memory, [](void*) {});
}

void reset() {
  choices = handles = 0;
  starts = chooses = true;
  workspace_needed = 1 << 20;
}

}  // namespace fake

// Doubles with the same numbers, for the products in double.
struct Wide {
  std::vector<double> values;
  Tensor tensor;
  explicit Wide(const Matrix& from) : values(from.values.begin(), from.values.end()), tensor(from.tensor) {
    tensor.data = values.data() + (static_cast<float*>(from.tensor.data) - from.values.data());
    tensor.dtype = DType::f64;
  }
};

void asks_the_library(Precision precision, DType dtype) {
  fake::reset();
  {
    CublasLt blas(fake::functions, precision, fake::workspace);
    int shapes = 0;
    for (int ways = 0; ways < 8; ++ways) {
      const Case c{6, 11, 9, ways % 3, 0, (ways & 1) != 0, (ways & 2) != 0, (ways & 4) != 0};
      Matrix left = factor_of(c.rows, c.inner, c.left_transposed, c, 1);
      Matrix right = factor_of(c.inner, c.cols, c.right_transposed, c, 2);
      Matrix out(c.rows, c.cols, 3, 3);
      const bool bf16 = precision == Precision::bf16 && dtype == DType::f32;
      for (Matrix* factor : {&left, &right}) {
        for (std::size_t i = 0; i < factor->values.size(); ++i)
          factor->shadow[i] = Bf16::round(factor->values[i]);
      }
      Wide wide_left(left), wide_right(right), wide_out(out);
      const bool wide = dtype == DType::f64;
      const Factor a{wide ? wide_left.tensor : left.tensor, c.left_transposed};
      const Factor b{wide ? wide_right.tensor : right.tensor, c.right_transposed};
      const Tensor target = wide ? wide_out.tensor : out.tensor;
      const Matrix before = out;
      check(blas.product(a, b, target, c.accumulate, nullptr), c.name() + ": the library computes it");
      const Factor fa{left.tensor, c.left_transposed}, fb{right.tensor, c.right_transposed};
      const auto round = [&](float x) { return bf16 ? Bf16::round(x).value() : x; };
      bool close = true;
      for (std::int64_t i = 0; i < c.rows; ++i) {
        for (std::int64_t j = 0; j < c.cols; ++j) {
          double sum = c.accumulate ? before.values[i * target.stride + j] : 0;
          for (std::int64_t k = 0; k < c.inner; ++k) {
            sum += static_cast<double>(round(element(fa, i, k))) * round(element(fb, k, j));
          }
          const double got = wide ? target.view<double>()(i, j) : target.view<float>()(i, j);
          close &= std::fabs(got - sum) <= (wide ? 1e-14 : 4 * kUnit) * (1 + std::fabs(sum));
        }
      }
      check(close, text("cuBLASLt ", c.name(), ": elements"));
      const auto compute = wide                           ? lt::kCompute64
                           : precision == Precision::tf32 ? lt::kComputeTf32
                                                          : lt::kCompute32;
      check(fake::described.compute == compute, "the type of the sums");
      check(fake::described.scale == (wide ? lt::kDouble : lt::kFloat), "the type of alpha");
      check(fake::choices == ++shapes, "a new shape is asked for once");
      check(blas.product(a, b, target, true, nullptr) && fake::choices == shapes, "and not again");
    }
    check(fake::preferred.schemes == lt::kSumsInWorkspace, "sums are added up in a fixed order");
    check(fake::preferred.workspace == std::uint64_t{32} << 20, "the workspace is said");
    check(fake::handles == 1 && fake::alive > 0, "one handle");
  }
  check(fake::alive == 0, "all is given back");
}

// Buffers at known distances from an aligned address: left at 4, right at 32, out at 16.
void says_the_alignments() {
  fake::reset();
  alignas(256) static float memory[3 * 256] = {};
  CublasLt blas(fake::functions, Precision::full, fake::workspace);
  const auto tensor = [](float* at) { return Tensor{at, 4, 4, 4, DType::f32}; };
  check(blas.product({tensor(memory + 1)}, {tensor(memory + 256 + 8)}, tensor(memory + 512 + 4), false,
                     nullptr),
        "a product of unaligned factors");
  const std::uint32_t (&alignment)[4] = fake::preferred.alignment;
  check(alignment[0] == 32 && alignment[1] == 4 && alignment[2] == 16 && alignment[3] == 16, "alignments");
  check(blas.product({tensor(memory)}, {tensor(memory + 256)}, tensor(memory + 512), false, nullptr) &&
            fake::choices == 2,
        "other alignments are another plan");
  check(alignment[0] == 256 && alignment[1] == 256 && alignment[2] == 256, "aligned factors");
}

void does_without_the_library() {
  Matrix a(4, 4, 0, 1), b(4, 4, 0, 2), out(4, 4, 0, 3);
  const auto answers = [&] {
    CublasLt blas(fake::functions, Precision::full, fake::workspace);
    const bool first = blas.product({a.tensor}, {b.tensor}, out.tensor, false, nullptr);
    return first || blas.product({a.tensor}, {b.tensor}, out.tensor, false, nullptr);
  };
  fake::reset();
  fake::starts = false;
  check(!answers() && fake::handles == 1 && fake::alive == 0, "a library that does not start is tried once");
  fake::reset();
  fake::chooses = false;
  check(!answers() && fake::choices == 1, "a shape that it refuses is asked for once");
  fake::reset();
  fake::workspace_needed = std::uint64_t{33} << 20;
  check(!answers(), "too large a workspace is no way");
  check((lt::find() == nullptr) == lt::name().empty(), "the name says whether it is there");
}

}  // namespace

int main() {
  rounding();
  tiles<Tf32Way, SmallTile>();
  tiles<Tf32Way, LargeTile>();
  tiles<Bf16Way, SmallTile>();
  tiles<Bf16Way, LargeTile>();
  epilogues<Tf32Way, SmallTile>();
  epilogues<Tf32Way, LargeTile>();
  epilogues<Bf16Way, SmallTile>();
  epilogues<Bf16Way, LargeTile>();
  const std::vector<double> full = trained(make_backend("cpu", Precision::full, {}));
  trains<Tf32Way, SmallTile>(full);
  trains<Tf32Way, LargeTile>(full);
  trains<Bf16Way, SmallTile>(full);
  trains<Bf16Way, LargeTile>(full);
  choice();
  for (const Precision precision : {Precision::full, Precision::tf32, Precision::bf16}) {
    asks_the_library(precision, DType::f32);
  }
  asks_the_library(Precision::full, DType::f64);
  says_the_alignments();
  does_without_the_library();
  return verdict("products");
}
