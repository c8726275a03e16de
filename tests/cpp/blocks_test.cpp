// The block algorithms of the CUDA backend, played by one thread: whole trainings through them must give what the
// CPU backend gives.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "engine/engine.h"
#include "math/low_precision.h"
#include "serial_device.h"
#include "testing.h"

namespace {

using namespace fastsae;
using namespace fastsae::cuda;

// More than one block in each direction, and none of them whole.
constexpr std::int64_t kFeatures = 70, kHidden = 67, kRows = 611, kBatch = 300;

std::vector<std::int64_t> some_order() {
  std::vector<std::int64_t> order;
  for (std::int64_t i = 0; i < kRows; ++i) order.push_back(i * 7 % kRows);
  return order;
}

struct Case {
  const char* activation;
  const char* penalty;
  const char* output;
  const char* loss;
  const char* optimizer;
  bool tied, moving;
};

ModelSpec spec_of(const Case& c) {
  ModelSpec spec = classic_model(DType::f64, kFeatures, kHidden, c.activation, c.penalty, c.output, c.loss);
  spec.tied = c.tied;
  spec.decoupled_decay = std::string(c.optimizer) == "adamw";
  spec.moving_rho_hat = c.moving;
  return spec;
}

std::unique_ptr<Engine> engine_of(const Case& c, std::unique_ptr<Backend> backend) {
  const OptimizerSpec optimizer{c.optimizer, 1e-2, 0.9, 0.9, 0.999, 1e-8, 0.3};
  auto engine = std::make_unique<Engine>(spec_of(c), optimizer, std::move(backend), 0);
  std::uint32_t seed = 7;
  for (const char* name : {"W1", "b1", "W2", "b2"}) {
    if (c.tied && std::string(name) == "W2") continue;
    std::vector<double> values = numbers(engine->tensor(name).size(), ++seed);
    for (double& value : values) value = 0.2 * (value - 0.5);
    engine->write(name, values.data());
  }
  return engine;
}

void trains_as_the_cpu(const Case& c) {
  const std::string name = text(c.activation, " ", c.penalty, " ", c.output, " ", c.loss, " ", c.optimizer);
  const auto serial = engine_of(c, serial_device());
  const auto cpu = engine_of(c, make_backend("cpu", Precision::full, {}));
  const std::vector<double> data = numbers(kRows * kFeatures, 1), weights = numbers(kRows, 2);
  const RowSource x{data.data(), kRows, kFeatures, kFeatures * 8, DType::f64};
  const std::vector<std::int64_t> order = some_order();
  for (Engine* engine : {serial.get(), cpu.get()}) {
    for (const std::int64_t* rows : {order.data(), static_cast<const std::int64_t*>(nullptr)}) {
      for (int epoch = 0; epoch < 2; ++epoch) engine->run({x, weights.data()}, rows, kRows, kBatch);
    }
  }
  check(serial->steps() == 12 && cpu->steps() == 12, name + ": steps");
  check(largest_difference(*serial, *cpu) < 1e-12, name + ": parameters and state after 12 steps");
  const Metrics a = serial->metrics(), b = cpu->metrics();
  check(std::fabs(a.sums.loss() - b.sums.loss()) < 1e-9 * std::fabs(b.sums.loss()), name + ": metrics");
  check(a.steps == b.steps && a.rows == b.rows, name + ": counts");

  if (std::string(c.optimizer) == "sign_sgd") {
    const std::vector<double> iterate = values_of(*serial, "W1");
    for (Engine* engine : {serial.get(), cpu.get()}) engine->set_averaged(true);
    check(largest_difference(*serial, *cpu) < 1e-12, name + ": averages");
    check(values_of(*serial, "W1") != iterate && values_of(*serial, "training.W1") == iterate,
          name + ": averages are in the place of what they are of");
    for (Engine* engine : {serial.get(), cpu.get()}) engine->set_averaged(false);
    check(values_of(*serial, "W1") == iterate, name + ": and it comes back");
  }

  std::vector<double> codes[2], outputs[2], losses[2];
  int which = 0;
  for (Engine* engine : {serial.get(), cpu.get()}) {
    codes[which].resize(kRows * kHidden);
    outputs[which].resize(kRows * kFeatures);
    losses[which].resize(kRows);
    engine->encode(x, codes[which].data());
    engine->reconstruct(x, outputs[which].data());
    engine->score(x, x, losses[which].data());
    ++which;
  }
  const auto close = [](const std::vector<double>& p, const std::vector<double>& q) {
    for (std::size_t i = 0; i < p.size(); ++i) {
      if (!(std::fabs(p[i] - q[i]) <= 1e-12 * (1 + std::fabs(q[i])))) return false;
    }
    return true;
  };
  check(close(codes[0], codes[1]) && close(outputs[0], outputs[1]) && close(losses[0], losses[1]),
        name + ": inference");
}

// The bad row is in the 6th of 10 steps, in the middle of those in flight: five steps count, no later one does.
void a_bad_row_stops_the_steps_after_it() {
  const Case c{"sigmoid", "kl", "sigmoid", "squared_error", "adam", false, true};
  const auto serial = engine_of(c, serial_device());
  const auto alone = engine_of(c, serial_device());
  std::vector<double> data = numbers(kRows * kFeatures, 1);
  const RowSource x{data.data(), kRows, kFeatures, kFeatures * 8, DType::f64};
  alone->run({x}, nullptr, 250, 50);
  data[270 * kFeatures + 3] = std::nan("");
  std::string message;
  try {
    serial->run({x}, nullptr, 500, 50);
  } catch (const ValueError& error) {
    message = error.what();
  }
  check(message.find("row 270") != std::string::npos, "the bad row is named: " + message);
  check(serial->steps() == 5 && serial->metrics().rows == 250, "the steps before it count");
  check(largest_difference(*serial, *alone, false) == 0, "the model is that of the last good step");
}

// An encoder and its selection, of more rows and latents than a tile has, against the whole product sorted.
void selects_from_an_encoder(bool biased, bool scaled) {
  constexpr std::int64_t rows = 150, width = 19, latents = 2500, k = 7;
  std::vector<double> x = numbers(rows * width, 3), weight = numbers(latents * width, 4),
                      bias = numbers(latents, 5), scale = numbers(latents, 6);
  std::vector<double> scores(rows * latents), values(rows * k);
  std::vector<std::int32_t> indices(rows * k);
  for (double& value : weight) value -= 0.5;
  const std::unique_ptr<Backend> device = serial_device();
  Selection selection;
  selection.x = {x.data(), rows, width, width, DType::f64};
  selection.weight = {weight.data(), latents, width, width, DType::f64};
  if (biased) selection.bias = {bias.data(), 1, latents, latents, DType::f64};
  if (scaled) selection.scale = {scale.data(), 1, latents, latents, DType::f64};
  selection.values = {values.data(), rows, k, k, DType::f64};
  selection.indices = {indices.data(), rows, k, k, DType::i32};
  device->encode_select(selection);
  device->product({selection.x}, {selection.weight, true},
                  {scores.data(), rows, latents, latents, DType::f64}, false, nullptr, {});
  bool same = true;
  for (std::int64_t row = 0; row < rows; ++row) {
    double* own = scores.data() + row * latents;
    std::vector<std::int64_t> columns(latents);
    for (std::int64_t col = 0; col < latents; ++col) {
      columns[col] = col;
      if (biased) own[col] += bias[col];
      if (scaled) own[col] *= scale[col];
    }
    std::stable_sort(columns.begin(), columns.end(), [&](auto a, auto b) { return own[a] > own[b]; });
    for (std::int64_t i = 0; i < k; ++i) {
      same = same && indices[row * k + i] == columns[i] && values[row * k + i] == own[columns[i]];
    }
  }
  check(same, text("selection from an encoder, biased ", biased, ", scaled ", scaled));
}

bool same_bits(const Engine& a, const Engine& b) {
  for (const std::string& name : a.names()) {
    const auto size = static_cast<std::size_t>(a.tensor(name).size());
    std::vector<double> x(size), y(size);
    a.read(name, x.data());
    b.read(name, y.data());
    if (std::memcmp(x.data(), y.data(), size * sizeof(double)) != 0) return false;
  }
  return true;
}

// Rows that lie in the device's memory, in an order, of another type, further apart than they are wide, and looked at
// while steps are in flight: all as if they had come from the host.
template <class From>
void rows_on_the_device_give_the_same_bits(DType dtype, std::int64_t stride) {
  const Case c{"sigmoid", "kl", "sigmoid", "squared_error", "adam", false, true};
  const std::string name = text("device rows of ", sizeof(From), " bytes, stride ", stride, ": ");
  const std::vector<double> exact = numbers(kRows * kFeatures, 1), weights = numbers(kRows, 2);
  std::vector<From> data(static_cast<std::size_t>(kRows * stride));
  for (std::int64_t i = 0; i < kRows * kFeatures; ++i) {
    const auto at = static_cast<std::size_t>(i / kFeatures * stride + i % kFeatures);
    if constexpr (sizeof(From) == 2)
      data[at] = Bf16::round(static_cast<float>(exact[static_cast<std::size_t>(i)]));
    else
      data[at] = static_cast<From>(exact[static_cast<std::size_t>(i)]);
  }
  RowSource host{data.data(), kRows, kFeatures, stride * static_cast<std::int64_t>(sizeof(From)), dtype};
  RowSource device = host;
  device.on_device = true;
  const std::vector<std::int64_t> order = some_order();
  for (const double* w : {static_cast<const double*>(nullptr), weights.data()}) {
    for (const std::int64_t* rows : {static_cast<const std::int64_t*>(nullptr), order.data()}) {
      const auto a = engine_of(c, serial_device());
      const auto b = engine_of(c, serial_device());
      for (int epoch = 0; epoch < 2; ++epoch) {
        a->run({host, w}, rows, kRows, 100);
        b->run({device, w}, rows, kRows, 100);
      }
      check(a->steps() == 14 && same_bits(*a, *b), name + "training");
      check(a->metrics().sums.loss() == b->metrics().sums.loss(), name + "metrics");
      const Cost p = a->gradient({host, w}), q = b->gradient({device, w});
      check(p.loss() == q.loss() && p.gradient_norm == q.gradient_norm && same_bits(*a, *b),
            name + "gradient");
      check(a->evaluate({host, w}).loss() == b->evaluate({device, w}).loss(), name + "evaluation");
      std::vector<double> from_host(kRows * kHidden), from_device(kRows * kHidden), losses(kRows),
          others(kRows);
      a->encode(host, from_host.data());
      b->encode(device, RowTarget(from_device.data(), true));
      check(from_host == from_device, name + "codes, written in place");
      b->encode(device, from_device.data());
      check(from_host == from_device, name + "codes, brought to the host");
      a->score(host, host, losses.data());
      b->score(device, device, others.data());
      check(losses == others, name + "scores");
      std::vector<double> taken(kRows * kFeatures), same(kRows * kFeatures);
      a->take(host, rows, {taken.data(), kRows, kFeatures, kFeatures, DType::f64});
      b->take(device, rows, {same.data(), kRows, kFeatures, kFeatures, DType::f64});
      check(taken == same, name + "taking rows");
    }
  }
}

void a_bad_row_on_the_device_is_named() {
  const Case c{"sigmoid", "kl", "sigmoid", "squared_error", "adam", false, true};
  const auto engine = engine_of(c, serial_device());
  std::vector<double> data = numbers(kRows * kFeatures, 1);
  RowSource x{data.data(), kRows, kFeatures, kFeatures * 8, DType::f64, true};
  check(engine->first_row_outside(x, 0, 1) == -1, "all rows are inside");
  for (const std::int64_t row : {kRows - 1, std::int64_t{270}, std::int64_t{64}, std::int64_t{0}}) {
    data[static_cast<std::size_t>(row * kFeatures + kFeatures - 1)] = row == 64 ? -HUGE_VAL : std::nan("");
    check(engine->first_row_outside(x, -1e300, 1e300) == row, text("the first bad row is ", row));
    std::vector<std::int64_t> order;
    for (std::int64_t i = 0; i < kRows; ++i) order.push_back((i + row + 5) % kRows);
    const std::int64_t steps = engine->steps();
    std::string message;
    try {
      engine->run({x}, order.data(), kRows, 40);
    } catch (const ValueError& error) {
      message = error.what();
    }
    check(message.find("X: row ") == 0, "a bad row on the device is named: " + message);
    if (row == kRows - 1)
      check(message.find(text("row ", row, " ")) == 3 && engine->steps() == steps + 15,
            "the steps before it count: " + message);
  }
  data[3] = 1.5;
  check(engine->first_row_outside(x, 0, 1) == 0, "a number outside the bounds is found");
}

}  // namespace

int main() {
  const Case cases[] = {{"sigmoid", "kl", "sigmoid", "squared_error", "adam", false, false},
                        {"tanh", "kl", "identity", "squared_error", "adamw", false, true},
                        {"relu", "l1", "softplus", "squared_error", "momentum", false, false},
                        {"softplus", "log", "sigmoid", "cross_entropy", "nesterov", true, false},
                        {"identity", "none", "tanh", "squared_error", "sgd", true, false},
                        {"sigmoid", "kl", "tanh", "squared_error", "sign_sgd", true, true}};
  for (const Case& c : cases) trains_as_the_cpu(c);
  a_bad_row_stops_the_steps_after_it();
  selects_from_an_encoder(true, false);
  selects_from_an_encoder(false, true);
  selects_from_an_encoder(true, true);
  rows_on_the_device_give_the_same_bits<double>(DType::f64, kFeatures);
  rows_on_the_device_give_the_same_bits<double>(DType::f64, kFeatures + 3);
  rows_on_the_device_give_the_same_bits<float>(DType::f32, kFeatures);
  rows_on_the_device_give_the_same_bits<Bf16>(DType::bf16, kFeatures + 1);
  a_bad_row_on_the_device_is_named();
  return verdict("blocks");
}
