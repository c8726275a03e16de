// Codes that are written down in tiles, and go on as lists where they have few elements: what a device collects, played by
// one thread, against the CPU, and steps that are recorded with one choice and replayed with others.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/list.h"
#include "like_the_cpu.h"
#include "math/low_precision.h"
#include "serial_device.h"
#include "testing.h"

namespace {

using namespace fastsae;

template <class S>
Tensor tensor(std::vector<S>& values, std::int64_t rows, std::int64_t cols) {
  return {values.data(), rows, cols, cols, std::is_same_v<S, std::int32_t> ? DType::i32 : dtype_of<S>};
}

// ---- what is collected

template <class S>
struct Collected {
  Collected(std::int64_t rows, std::int64_t room)
      : starts(static_cast<std::size_t>(rows + 1), -7),
        latents(static_cast<std::size_t>(room), -7),
        values(static_cast<std::size_t>(room), S(-7)) {}
  Code code() {
    const auto room = static_cast<std::int64_t>(values.size()),
               rows = static_cast<std::int64_t>(starts.size());
    return {rows - 1, tensor(starts, 1, rows), 0, tensor(latents, 1, room), tensor(values, 1, room)};
  }
  bool same(const Collected& other) const {
    return starts == other.starts && latents == other.latents &&
           std::memcmp(values.data(), other.values.data(), values.size() * sizeof(S)) == 0;
  }
  std::vector<std::int32_t> starts, latents;
  std::vector<S> values;
};

// Two tiles of rows, of which the second has more elements than are wanted, by `excess`, of one kind or the other.
template <class S>
void collects(std::int64_t cols, bool windowed, int excess_above, int excess_near) {
  constexpr std::int64_t rows[] = {1050, 37}, all = rows[0] + rows[1];
  std::vector<S> z = numbers<S>(all * cols, 3, -15), threshold = numbers<S>(cols, 4);
  z[5] = std::numeric_limits<S>::quiet_NaN();
  for (std::int64_t col = 0; col < cols; ++col) z[static_cast<std::size_t>(7 * cols + col)] = S(2);
  for (std::int64_t col = 0; col < cols; ++col) z[static_cast<std::size_t>(8 * cols + col)] = S(-9);
  const double half = windowed ? 0.25 : 0;
  std::int64_t above[2] = {}, near[2] = {};
  for (std::int64_t i = 0; i < all * cols; ++i) {
    const S at = z[static_cast<std::size_t>(i)], bar = threshold[static_cast<std::size_t>(i % cols)];
    const int tile = i / cols < rows[0] ? 0 : 1;
    above[tile] += !(at <= bar) ? 1 : 0;
    near[tile] += std::fabs(at - bar) < static_cast<S>(half) ? 1 : 0;
  }
  check(above[1] > 1 && (near[1] > 1) == windowed, "there is something to collect");
  std::vector<Collected<S>> elements[2];
  double listed[2][2];
  std::vector<double> sums[2];
  const std::unique_ptr<Backend> backends[] = {cuda::serial_device(),
                                               make_backend("cpu", Precision::full, {})};
  for (const int which : {0, 1}) {
    elements[which].assign(2, Collected<S>(all, all * cols));
    Code codes[2] = {elements[which][0].code(), elements[which][1].code()};
    std::int64_t first = 0;
    for (const int tile : {0, 1}) {
      const bool last = tile == 1;
      std::vector<S> part(z.begin() + first * cols, z.begin() + (first + rows[tile]) * cols);
      backends[which]->collect({tensor(part, rows[tile], cols), tensor(threshold, 1, cols), half, first,
                                codes[0], windowed ? codes[1] : Code{},
                                above[tile] - (last ? excess_above : 0),
                                near[tile] - (last ? excess_near : 0), &listed[which][tile]});
      first += rows[tile];
    }
    sums[which].assign(static_cast<std::size_t>(cols), -7);  // are added to
    backends[which]->sum_by_latent(codes[windowed ? 1 : 0], tensor(sums[which], 1, cols));
  }
  const bool fits = excess_above == 0 && excess_near == 0;
  const std::string name = text(cols, " latents, ", windowed ? "windowed" : "above 0", ", excess ",
                                excess_above, " and ", excess_near, ", ", sizeof(S) * 8, " bits: ");
  for (const int which : {0, 1})
    check(listed[which][0] == 1 && listed[which][1] == (fits ? 1 : 0), name + "whether it is a list");
  check(elements[0][0].same(elements[1][0]), name + "elements above");
  check(elements[0][1].same(elements[1][1]), name + "elements near");
  check(elements[0][0].starts.back() == above[0] + (fits ? above[1] : 0), name + "where the last row ends");
  for (std::int64_t i = 0; i < cols; ++i) {
    const double a = sums[0][static_cast<std::size_t>(i)], b = sums[1][static_cast<std::size_t>(i)];
    const bool lost = std::isnan(a) && std::isnan(b);
    check(lost || std::fabs(a - b) <= 1e-11 * (1 + std::fabs(b)), name + "sums by latent");
  }
}

// The next product reads the errors of a list in bfloat16, as it reads those of a tile that was multiplied.
void errors_have_a_shadow() {
  constexpr std::int64_t rows = 3, latents = 9, outputs = 5, k = 2;
  std::vector<std::int32_t> places{0, 7, 1, 2, 3, 8};
  std::vector<float> values = numbers<float>(rows * k, 1), decoder = numbers<float>(latents * outputs, 2, -1),
                     target = numbers<float>(rows * outputs, 3), ones(rows, 1.0f), errors(2 * rows * outputs);
  std::vector<Bf16> shadow(2 * rows * outputs);
  std::vector<double> losses(rows);
  const double factor = 0.5;
  for (const bool aimed : {true, false}) {
    Decoding d{};
    d.code = {rows, {}, k, tensor(places, 1, rows * k), tensor(values, 1, rows * k)};
    d.weight = tensor(decoder, latents, outputs);
    d.slots = d.prefixes.count = 2;
    d.prefixes.ends[0] = 3, d.prefixes.ends[1] = latents;
    d.prefixes.weights[0] = d.prefixes.weights[1] = 1;
    d.errors = tensor(errors, 2 * rows, outputs);
    d.errors.shadow = shadow.data();
    if (aimed) {
      d.target = tensor(target, rows, outputs);
      d.row_weight = tensor(ones, 1, rows), d.factor = &factor;
      d.losses = tensor(losses, 1, rows);
    }
    cuda::serial_device()->decode(d);
    bool same = true;
    for (std::size_t i = 0; i < errors.size(); ++i) same &= shadow[i].bits == Bf16::round(errors[i]).bits;
    check(same && errors[0] != 0 && errors[rows * outputs] != 0, "errors and their shadow");
  }
}

// ---- trainings

// The CPU, which writes down what it chose: of a tile 1 for a list, or 0 and, but of the first, whether others were
// multiplied before.
class Watched final : public LikeTheCpu {
 public:
  explicit Watched(std::string& choices) : choices_(choices) {}
  void either(const double* number, const std::function<void()>& yes,
              const std::function<void()>& no) override {
    choices_ += *number != 0 ? '1' : '0';
    LikeTheCpu::either(number, yes, no);
  }

 private:
  std::string& choices_;
};

constexpr std::int64_t kTile = 1024, kRows = kTile + 76, kFeatures = 11, kLatents = 200;

std::unique_ptr<Engine> engine_of(const ModelSpec& spec, std::unique_ptr<Backend> backend) {
  const OptimizerSpec optimizer{"adam", 1e-3, 0.9, 0.9, 0.999, 1e-8, 0.05};
  auto engine = std::make_unique<Engine>(spec, optimizer, std::move(backend), 0);
  std::uint32_t seed = 7;
  for (const std::string& name : engine->names()) {
    if (name[0] != 'W' && name[0] != 'b' && name != "threshold") continue;
    std::vector<double> values = numbers(engine->tensor(name).size(), ++seed, name == "threshold" ? 0 : -1);
    for (double& value : values) value = 0.3 * value - (name == "b_enc" ? 0.9 : 0);
    engine->write(name, values.data());
  }
  return engine;
}

// Of each tensor relative to its largest element: sums over rows are large.
double difference_of(const Engine& a, const Engine& b, bool gradients) {
  double largest = 0;
  for (const std::string& name : a.names()) {
    if (!gradients && name.rfind("gradient", 0) == 0) continue;
    const std::vector<double> x = values_of(a, name), y = values_of(b, name);
    double scale = 1, difference = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      scale = std::max(scale, std::fabs(y[i]));
      if (!(std::fabs(x[i] - y[i]) <= difference)) difference = std::fabs(x[i] - y[i]);
    }
    if (!(difference / scale <= largest)) largest = difference / scale;
  }
  return largest;
}

// Rows [begin, end) of a batch have many active latents, which makes their tile one that is multiplied.
void lists_and_tiles(const ModelSpec& spec, const std::string& name) {
  const std::pair<std::int64_t, std::int64_t> loud[] = {{0, 0},         {0, kTile}, {0, kRows},
                                                        {kTile, kRows}, {0, kRows}, {0, 0}};
  std::string choices;
  const auto serial = engine_of(spec, cuda::serial_device());
  const auto cpu = engine_of(spec, std::make_unique<Watched>(choices));
  const std::vector<double> quiet = numbers(kRows * kFeatures, 1, -1), weights = numbers(kRows, 2);
  const auto step = [&](std::pair<std::int64_t, std::int64_t> of, bool look) {
    std::vector<double> x = quiet;
    for (std::int64_t i = of.first * kFeatures; i < of.second * kFeatures; ++i)
      x[static_cast<std::size_t>(i)] *= 8;
    Examples examples{{x.data(), kRows, kFeatures, kFeatures * 8, DType::f64}};
    examples.weights = weights.data();
    for (Engine* engine : {serial.get(), cpu.get()}) {
      if (look)
        engine->gradient(examples);
      else
        engine->run(examples, nullptr, kRows, kRows);
    }
    const double difference = difference_of(*serial, *cpu, look);
    check(difference < 1e-12, text(name, ": rows ", of.first, " to ", of.second, " differ by ", difference));
  };
  // Of each tile whether it is a list, of a second one that is none whether it adds to gradients; then of each again.
  for (const auto& rows : loud) {
    step(rows, false);
    choices += ' ';
  }
  check(choices == "1111 0101 00100 10010 00100 1111 ", name + ": the choices were " + choices);
  check(serial->steps() == 6 && cpu->steps() == 6, name + ": steps");
  for (const auto& rows : loud) step(rows, true);
}

}  // namespace

int main() {
  for (const std::int64_t cols : {70, 2500}) {
    for (const bool windowed : {false, true}) {
      for (const int excess : {0, 1}) {
        collects<float>(cols, windowed, excess, 0);
        collects<double>(cols, windowed, excess, 0);
      }
    }
    collects<float>(cols, true, 0, 1);
  }
  errors_have_a_shadow();
  lists_and_tiles(sparse_model(DType::f64, kFeatures, kLatents, "relu"), "relu");
  ModelSpec jumps = sparse_model(DType::f64, kFeatures, kLatents, "jump_relu");
  jumps.sparse_code->sparsity = "step";
  lists_and_tiles(jumps, "jump_relu");
  jumps.sparse_code->decoder_norm = "rescale";
  jumps.sparse_code->sparsity = "tanh";
  jumps.sparse_code->tanh_scale = 4;
  lists_and_tiles(jumps, "jump_relu, tanh");
  return verdict("lists");
}
