// Many steps of a small model at once, as a GPU takes them in one launch, played by one thread: whole trainings must
// give what the CPU backend gives.
#include "small.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "engine/engine.h"
#include "like_the_cpu.h"
#include "testing.h"
#include "thread_team.h"

namespace {

using namespace fastsae;
using namespace fastsae::cuda;

// The CPU, but steps go through the small path: `most` at once, from rows that are no view of the caller's.
class SmallDevice final : public LikeTheCpu {
 public:
  explicit SmallDevice(std::int64_t most, bool by_threads = false) : most_(most), by_threads_(by_threads) {}
  std::int64_t small_steps(const SmallModel& model, std::int64_t rows) override {
    return fits(model, rows, 4 << 20) ? most_ : 0;
  }
  void take_small_steps(const SmallModel& model, const SmallBatches& batches) override {
    with_scalar(model.dtype(), [&](auto s) { take<decltype(s)>(model, batches); });
    steps_taken += batches.steps;
    ++launches;
  }
  bool reads_host_memory() const override { return false; }
  void step(std::int64_t key, const std::function<void()>& body) override {
    ++general_steps;
    LikeTheCpu::step(key, body);
  }
  std::int64_t steps_in_flight() const override { return 4; }

  std::int64_t steps_taken = 0, launches = 0, general_steps = 0;

 private:
  template <class S>
  void take(const SmallModel& model, const SmallBatches& batches) {
    const SmallLayout layout(model, batches.rows);
    const auto bytes = static_cast<std::size_t>(layout.bytes);
    check(bytes % 16 == 0, "the layout is whole 16 bytes");
    const Memory memory(std::aligned_alloc(16, bytes), [](void* p) { std::free(p); });
    std::memset(memory.get(), 0xff, bytes);  // NaN: nothing may be read that was not written
    using State = typename SmallSteps<S>::State;
    const SmallSteps<S> steps(model, layout, batches, static_cast<std::byte*>(memory.get()));
    if (by_threads_) return play_by_threads<State>(SmallTeam::members, [&](auto& team) { steps.run(team); });
    SerialTeam<State> team(SmallTeam::members);
    steps.run(team);
  }

  const std::int64_t most_;
  const bool by_threads_;
};

struct Case {
  const char* activation = "sigmoid";
  const char* penalty = "kl";
  const char* output = "sigmoid";
  const char* loss = "squared_error";
  const char* optimizer = "adam";
  bool moving = false;
  std::int64_t features = 9, hidden = 5, rows = 47, batch = 10;
  bool weighted = true;
  double l1 = 0, longest = std::numeric_limits<double>::infinity();
  Schedule schedule = {};

  std::string name() const {
    return text(activation, " ", penalty, " ", output, " ", loss, " ", optimizer, moving ? " moving " : " ",
                features, "-", hidden, " batch ", batch, " of ", rows, " L1 ", l1, " at most ", longest, " ",
                schedule.name);
  }
};

std::unique_ptr<Engine> engine_of(const Case& c, DType dtype, std::unique_ptr<Backend> backend) {
  ModelSpec spec = classic_model(dtype, c.features, c.hidden, c.activation, c.penalty, c.output, c.loss);
  spec.layers[0].weight_decay = 1e-2;
  spec.layers[1].weight_decay = 3e-2;
  for (LayerSpec& layer : spec.layers) layer.weight_l1 = c.l1;
  spec.decoupled_decay = std::string(c.optimizer) == "adamw";
  spec.moving_rho_hat = c.moving;
  const OptimizerSpec optimizer{c.optimizer, 1e-2, 0.9, 0.9, 0.999, 1e-8, c.longest, c.schedule};
  auto engine = std::make_unique<Engine>(spec, optimizer, std::move(backend), 0);
  std::uint32_t seed = 7;
  for (const char* name : {"W1", "b1", "W2", "b2"}) {
    std::vector<double> values = numbers(engine->tensor(name).size(), ++seed);
    for (double& value : values) value = 0.6 * (value - 0.5);
    const std::vector<float> floats(values.begin(), values.end());
    engine->write(name, dtype == DType::f32 ? static_cast<const void*>(floats.data()) : values.data());
  }
  return engine;
}

bool same_metrics(const Metrics& a, const Metrics& b, double tolerance) {
  const auto close = [&](double x, double y) { return std::fabs(x - y) <= tolerance * (1 + std::fabs(y)); };
  return a.steps == b.steps && a.rows == b.rows && close(a.weight, b.weight) &&
         close(a.sums.reconstruction, b.sums.reconstruction) && close(a.sums.penalty, b.sums.penalty) &&
         close(a.sums.decay, b.sums.decay) && close(a.sums.gradient_norm, b.sums.gradient_norm);
}

// The rows of a case in an order of their own, for some epochs. float: the drift of a few steps, from 24 bits.
void trains_as_the_cpu(const Case& c, DType dtype = DType::f64, std::int64_t most = 3) {
  const double tolerance = dtype == DType::f64 ? 1e-12 : 1e-4;
  auto device = std::make_unique<SmallDevice>(most);
  const SmallDevice& small_device = *device;
  const auto small = engine_of(c, dtype, std::move(device));
  const auto cpu = engine_of(c, dtype, make_backend("cpu", Precision::full, {}));
  const std::vector<double> data = numbers(c.rows * c.features, 1), weights = numbers(c.rows, 2);
  const std::vector<float> floats(data.begin(), data.end());
  const bool f32 = dtype == DType::f32;
  const RowSource x{f32 ? static_cast<const void*>(floats.data()) : data.data(), c.rows, c.features,
                    c.features * (f32 ? 4 : 8), dtype};
  std::vector<std::int64_t> order(static_cast<std::size_t>(c.rows));
  for (std::int64_t i = 0; i < c.rows; ++i) order[static_cast<std::size_t>(i)] = (i * 5 + 3) % c.rows;
  for (Engine* engine : {small.get(), cpu.get()}) {
    for (int epoch = 0; epoch < 3; ++epoch)
      engine->run({x, c.weighted ? weights.data() : nullptr}, order.data(), c.rows, c.batch);
  }
  const std::int64_t steps = 3 * ((c.rows + c.batch - 1) / c.batch);
  check(small->steps() == steps && cpu->steps() == steps, c.name() + ": steps");
  check(small_device.steps_taken == steps && small_device.general_steps == 0,
        c.name() + ": all steps are small");
  const double difference = largest_difference(*small, *cpu);
  check(difference < tolerance, text(c.name(), ": parameters, state and gradients differ by ", difference));
  check(same_metrics(small->metrics(), cpu->metrics(), tolerance), c.name() + ": metrics");
}

void every_formula() {
  const char* activations[] = {"sigmoid", "tanh", "relu", "softplus", "identity"};
  for (const char* activation : activations) {
    const bool bounded = std::string(activation) == "sigmoid" || std::string(activation) == "tanh";
    for (const char* penalty : {"none", "l1", "log", "kl"}) {
      if (!bounded && std::string(penalty) == "kl") continue;
      for (const char* optimizer : {"sgd", "momentum", "nesterov", "adam", "adamw", "sign_sgd"}) {
        for (const char* output : activations) {
          Case c{activation, penalty, output, "squared_error", optimizer};
          trains_as_the_cpu(c);
          if (std::string(output) != "sigmoid") continue;
          c.loss = "cross_entropy";
          trains_as_the_cpu(c);
          c.moving = std::string(penalty) == "kl";
          if (c.moving) trains_as_the_cpu(c);
        }
      }
    }
  }
}

// Limits of the gradient far above, about and far below those of these steps.
void every_update() {
  const Schedule schedules[] = {{},
                                {"constant", 6},
                                {"cosine", 0, 12, 0.1},
                                {"cosine", 4, 30, 0},
                                {"linear", 3, 14, 0.1, 1, 1, 8},
                                {"step", 2, 0, 0, 3, 0.5}};
  for (const char* optimizer : {"sgd", "momentum", "nesterov", "adam", "adamw", "sign_sgd"}) {
    for (const double l1 : {0.0, 0.02}) {
      for (const double longest : {1e9, 0.6, 1e-3}) {
        for (const Schedule& schedule : schedules) {
          Case c;
          c.optimizer = optimizer, c.l1 = l1, c.longest = longest, c.schedule = schedule;
          trains_as_the_cpu(c);
        }
      }
    }
  }
}

void every_size() {
  const std::int64_t sizes[][4] = {{1, 1, 1, 1},   {1, 1, 7, 3},       {64, 25, 250, 100},
                                   {4, 4, 16, 4},  {33, 17, 70, 13},   {3, 70, 131, 65},
                                   {70, 2, 12, 5}, {130, 37, 300, 150}};
  for (const auto& [features, hidden, rows, batch] : sizes) {
    Case c;
    c.features = features, c.hidden = hidden, c.rows = rows, c.batch = batch, c.moving = true;
    trains_as_the_cpu(c);
    c.weighted = false;
    trains_as_the_cpu(c, DType::f64, 1000);
    trains_as_the_cpu(c, DType::f32);
  }
}

// The same bits from members that are threads, which the thread sanitizer then watches: see races_test.cpp.
template <class S>
void threads_give_the_same_bits() {
  Case c;
  c.features = 19, c.hidden = 37, c.moving = true;
  c.l1 = 0.02, c.longest = 0.5, c.schedule = {"cosine", 2, 20, 0.1};
  const auto serial = engine_of(c, dtype_of<S>, std::make_unique<SmallDevice>(3));
  const auto threads = engine_of(c, dtype_of<S>, std::make_unique<SmallDevice>(3, true));
  const std::vector<double> data = numbers(c.rows * c.features, 1), weights = numbers(c.rows, 2);
  const RowSource x{data.data(), c.rows, c.features, c.features * 8, DType::f64};
  for (Engine* engine : {serial.get(), threads.get()})
    engine->run({x, weights.data()}, nullptr, c.rows, c.batch);
  check(largest_difference(*serial, *threads) == 0, "threads: parameters, state and gradients");
  check(same_metrics(serial->metrics(), threads->metrics(), 0), "threads: metrics");
}

// The bad row is in the 6th of 10 steps, alone in its launch or among others: five steps count, no later one does.
void a_bad_row_stops_the_steps_after_it(std::int64_t most) {
  Case c;
  c.moving = true, c.rows = 100;
  const auto small = engine_of(c, DType::f64, std::make_unique<SmallDevice>(most));
  const auto alone = engine_of(c, DType::f64, std::make_unique<SmallDevice>(most));
  std::vector<double> data = numbers(c.rows * c.features, 1);
  const RowSource x{data.data(), c.rows, c.features, c.features * 8, DType::f64};
  alone->run({x}, nullptr, 50, 10);
  const double good = data[54 * 9 + 3];
  data[54 * 9 + 3] = std::nan("");
  std::string message;
  try {
    small->run({x}, nullptr, 100, 10);
  } catch (const ValueError& error) {
    message = error.what();
  }
  check(message.find("row 54") != std::string::npos, "the bad row is named: " + message);
  check(small->steps() == 5 && small->metrics().rows == 50, "the steps before it count");
  check(same_metrics(small->metrics(), alone->metrics(), 0), "their costs, and no other");
  check(largest_difference(*small, *alone, false) == 0, "the model is that of the last good step");
  data[54 * 9 + 3] = good;
  for (Engine* engine : {small.get(), alone.get()}) engine->run({x}, nullptr, 100, 10);
  check(small->steps() == 15 && largest_difference(*small, *alone) == 0, "training goes on after it");
}

// Batches without weight are no steps, wherever they are.
void weightless_batches_are_skipped() {
  Case c;
  c.rows = 60;
  const auto small = engine_of(c, DType::f64, std::make_unique<SmallDevice>(100));
  const auto cpu = engine_of(c, DType::f64, make_backend("cpu", Precision::full, {}));
  const std::vector<double> data = numbers(c.rows * c.features, 1);
  std::vector<double> weights = numbers(c.rows, 2);
  for (std::size_t i : {0, 20, 30, 50})
    std::fill_n(weights.begin() + static_cast<std::ptrdiff_t>(i), 10, 0.0);
  const RowSource x{data.data(), c.rows, c.features, c.features * 8, DType::f64};
  for (Engine* engine : {small.get(), cpu.get()}) engine->run({x, weights.data()}, nullptr, 60, 10);
  check(small->steps() == 2 && small->metrics().rows == 60, "two batches have weight");
  check(largest_difference(*small, *cpu) < 1e-12, "batches without weight change nothing");
}

// What is too large, or of another kind, goes the general way.
void others_take_the_general_path() {
  Case c;
  c.features = 300, c.hidden = 600;
  auto device = std::make_unique<SmallDevice>(100);
  const SmallDevice& seen = *device;
  const auto large = engine_of(c, DType::f64, std::move(device));
  const std::vector<double> data = numbers(c.rows * c.features, 1);
  large->run({{data.data(), c.rows, c.features, c.features * 8, DType::f64}}, nullptr, c.rows, c.batch);
  check(seen.steps_taken == 0 && seen.general_steps == 5 && large->steps() == 5, "a large model");
}

// 64-25-64 with Adam and batches of 100 fits where a block may have 163 KiB; by hand: 4 times the parameters, two
// batches and two hidden ones.
void sizes_are_those_of_the_parts() {
  SmallModel model{};
  const std::int64_t shapes[][2] = {{25, 64}, {1, 25}, {64, 25}, {1, 64}};
  for (int i = 0; i < 4; ++i) {
    SmallParameter& p = model.parameters[i];
    p.value.rows = shapes[i][0], p.value.cols = shapes[i][1], p.value.dtype = DType::f32;
    p.update = as_kernel(Update<float, AdamStep>{});
  }
  const std::int64_t bytes = SmallLayout(model, 100).bytes;
  const std::int64_t parts = 4 * (4 * (28 * 68 + 25 + 64 * 28 + 64) + 2 * 100 * 68 + 2 * 100 * 28);
  check(bytes > parts && bytes < parts + 24000, text("64-25-64: ", bytes, " bytes, its parts ", parts));
  check(fits(model, 100, bytes) && !fits(model, 100, bytes - 1), "the limit");
  check(bytes <= 163 << 10, "64-25-64 fits into 163 KiB");
  check(!fits(model, 5000, std::numeric_limits<std::int64_t>::max()), "many rows");
  model.parameters[0].value.cols = std::int64_t{1} << 40;
  check(!fits(model, 100, std::numeric_limits<std::int64_t>::max()), "a width beyond any memory");
}

}  // namespace

int main() {
  every_formula();
  every_update();
  every_size();
  threads_give_the_same_bits<float>();
  threads_give_the_same_bits<double>();
  for (const std::int64_t most : {1, 4, 6, 100}) a_bad_row_stops_the_steps_after_it(most);
  weightless_batches_are_skipped();
  others_take_the_general_path();
  sizes_are_those_of_the_parts();
  return verdict("small");
}
