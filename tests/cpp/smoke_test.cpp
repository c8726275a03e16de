// The engine without Python, for the sanitizers: steps, many encoders, cancelling, tensors out and in, fork.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <limits>
#include <map>
#include <stdexcept>
#include <thread>
#include <vector>

#include "backend/process.h"
#include "core/error.h"
#include "engine/engine.h"
#include "engine/topk_encoder.h"
#include "testing.h"

namespace {

using namespace fastsae;

template <class Error, class Body>
bool throws(Body&& body) {
  try {
    body();
  } catch (const Error&) {
    return true;
  }
  return false;
}

struct Cancelled : std::runtime_error {
  Cancelled() : std::runtime_error("cancelled") {}
};

// Wide enough that its products are cut into several tiles.
constexpr std::int64_t kFeatures = 72, kHidden = 100, kRows = 1500, kBatch = 256;

ModelSpec model_spec(DType dtype) {
  ModelSpec spec = classic_model(dtype, kFeatures, kHidden, "sigmoid", "kl", "identity");
  spec.layers[0].beta = 3;
  spec.layers[0].rho = 0.05;
  spec.loss_reduction = "ufldl";
  spec.moving_rho_hat = true;
  spec.rho_hat_decay = 0.9;
  return spec;
}

const OptimizerSpec kAdam{"adam", 1e-2, 0.9, 0.9, 0.999, 1e-8};

using Bytes = std::vector<std::byte>;

std::size_t bytes_of(const Tensor& tensor) {
  return static_cast<std::size_t>(tensor.size()) * size_of(tensor.dtype);
}

std::map<std::string, Bytes> tensors_of(const Engine& engine) {
  std::map<std::string, Bytes> all;
  for (const std::string& name : engine.names()) {
    Bytes& bytes = all[name] = Bytes(bytes_of(engine.tensor(name)));
    engine.read(name, bytes.data());
  }
  return all;
}

template <class S>
struct Fixture {
  Fixture() {
    for (const char* name : {"W1", "W2"}) {
      std::vector<S> weights = numbers<S>(engine.tensor(name).size(), 7, -1);
      for (S& w : weights) w *= S(0.2);
      engine.write(name, weights.data());
    }
  }

  RowSource rows() const { return {x.data(), kRows, kFeatures, kFeatures * sizeof(S), dtype_of<S>}; }
  void train(int epochs = 1) {
    for (int i = 0; i < epochs; ++i) engine.run({rows()}, order.data(), kRows, kBatch);
  }
  std::vector<S> encode() const {
    std::vector<S> code(static_cast<std::size_t>(kRows * kHidden));
    engine.encode(rows(), code.data());
    return code;
  }

  const std::vector<S> x = numbers<S>(kRows * kFeatures, 1, -1);
  const std::vector<std::int64_t> order = [] {
    std::vector<std::int64_t> rows;
    for (std::int64_t i = 0; i < kRows; ++i) rows.push_back(i * 7 % kRows);
    return rows;
  }();
  int polls_left = -1;  // cancels when it reaches 0
  Engine engine{model_spec(dtype_of<S>), kAdam,
                make_backend("cpu", Precision::full,
                             [this] {
                               if (polls_left >= 0 && polls_left-- == 0) throw Cancelled();
                             }),
                0};
};

template <class S>
void training_is_equal_for_any_number_of_threads() {
  std::map<std::string, Bytes> first;
  for (const int threads : {1, 2, 4}) {
    set_num_threads(threads);
    Fixture<S> f;
    const double before = f.engine.evaluate({f.rows()}).loss();
    f.train(3);
    check(f.engine.evaluate({f.rows()}).loss() < 0.8 * before, "training lowers the cost");
    if (first.empty()) first = tensors_of(f.engine);
    check(first == tensors_of(f.engine), "training gives the same bits for any number of threads");
  }
}

// Selected codes with dead latents and prefixes, lists and tiles of the others, gates; the last batch is shorter.
void sparse_codes_are_equal_for_any_number_of_threads() {
  constexpr std::int64_t kLatents = 300, kCount = 1200;
  const std::vector<float> x = numbers<float>(kCount * kFeatures, 1, -1);
  const RowSource rows{x.data(), kCount, kFeatures, kFeatures * sizeof(float), DType::f32};
  for (const char* activation : {"topk", "batch_topk", "relu", "jump_relu", "gated"}) {
    ModelSpec spec = sparse_model(DType::f32, kFeatures, kLatents, activation);
    spec.sparse_code->dead_after = spec.sparse_code->activation == "topk" ? 500 : -1;
    if (spec.sparse_code->activation == "batch_topk") {
      spec.sparse_code->prefixes = {40, kLatents};
      spec.sparse_code->prefix_weights = {1, 1};
    }
    std::map<std::string, Bytes> first;
    for (const int threads : {1, 2, 4}) {
      set_num_threads(threads);
      Engine engine(spec, kAdam, make_backend("cpu", Precision::full, {}), 0);
      for (const char* name : {"W_enc", "W_dec"}) {
        std::vector<float> weights = numbers<float>(kLatents * kFeatures, 7, -1);
        for (float& w : weights) w *= 0.2f;
        engine.write(name, weights.data());
      }
      engine.run({rows}, nullptr, kCount, 500);
      (void)engine.encode_sparse(rows);
      std::map<std::string, Bytes> all;
      for (const std::string& name : engine.names()) {
        if (name.starts_with("gradient.W")) continue;  // without memory where no matrix was needed
        Bytes& bytes = all[name] = Bytes(bytes_of(engine.tensor(name)));
        engine.read(name, bytes.data());
      }
      if (first.empty()) first = all;
      check(first == all, std::string(activation) + ": the same bits for any number of threads");
    }
  }
}

template <class S>
void many_threads_encode() {
  Fixture<S> f;
  set_num_threads(1);
  const std::vector<S> alone = f.encode();
  set_num_threads(4);
  std::atomic<int> equal{0};
  std::vector<std::thread> encoders;
  for (int i = 0; i < 16; ++i) {
    encoders.emplace_back([&] {
      for (int k = 0; k < 3; ++k) equal += f.encode() == alone;
    });
  }
  for (std::thread& encoder : encoders) encoder.join();
  check(equal == 48, "16 threads encode what one thread encodes");
}

void encoders_and_a_trainer_take_turns() {
  Fixture<float> f, alone;
  alone.train(3);
  std::vector<std::thread> encoders;
  for (int i = 0; i < 3; ++i) {
    encoders.emplace_back([&] {
      for (int k = 0; k < 5; ++k) (void)f.encode();
    });
  }
  f.train(3);
  for (std::thread& encoder : encoders) encoder.join();
  check(tensors_of(f.engine) == tensors_of(alone.engine), "encoding meanwhile changes no training");
}

// Cancels one step at its first poll, at its second, and so on until it gets through.
void cancelling_changes_nothing() {
  Fixture<float> f, undisturbed;
  f.train();
  undisturbed.train();
  const std::vector<std::string> saved = [&] {
    std::vector<std::string> names;
    for (const std::string& name : f.engine.names()) {
      if (name.rfind("gradient.", 0) != 0) names.push_back(name);
    }
    return names;
  }();
  auto before = tensors_of(f.engine);
  const std::int64_t steps = f.engine.steps();
  int cancelled = 0;
  for (; cancelled < 1000; ++cancelled) {
    f.polls_left = cancelled;
    const bool stopped = throws<Cancelled>([&] { f.engine.run({f.rows()}, f.order.data(), kBatch, kBatch); });
    f.polls_left = -1;
    if (!stopped || f.engine.steps() != steps) break;
    auto after = tensors_of(f.engine);
    for (const std::string& name : saved) {
      check(after[name] == before[name], "a cancelled step leaves parameters and state as they were");
    }
  }
  check(cancelled >= 5 && f.engine.steps() == steps + 1, "a step is polled between blocks, and gets through");
  undisturbed.engine.run({f.rows()}, f.order.data(), kBatch, kBatch);
  check(tensors_of(f.engine) == tensors_of(undisturbed.engine), "training goes on as if never cancelled");

  f.polls_left = 1;
  check(throws<Cancelled>([&] { f.encode(); }), "encoding can be cancelled");
  check(f.encode() == undisturbed.encode(), "encoding works after it was cancelled");
}

template <class S>
void tensors_carry_the_whole_state() {
  Fixture<S> f, copy;
  f.train();
  for (const auto& [name, bytes] : tensors_of(f.engine)) copy.engine.write(name, bytes.data());
  copy.engine.set_steps(f.engine.steps());
  f.train(2);
  copy.train(2);
  check(tensors_of(f.engine) == tensors_of(copy.engine), "a restored engine goes on bit for bit");
  check(throws<ValueError>([&] { f.engine.tensor("W3"); }), "an unknown tensor is a ValueError");
}

void bad_rows_change_nothing() {
  Fixture<float> f;
  const auto before = tensors_of(f.engine);
  std::vector<float> x = f.x;
  x[5 * kFeatures + 3] = std::numeric_limits<float>::quiet_NaN();
  RowSource rows = f.rows();
  rows.data = x.data();
  check(throws<ValueError>([&] { f.engine.run({rows}, nullptr, kBatch, kBatch); }), "NaN is a ValueError");
  auto after = tensors_of(f.engine);
  for (const char* name : {"W1", "b1", "W2", "b2", "first_moment.W1", "second_moment.W1", "rho_hat1"}) {
    check(after[name] == before.at(name), "a batch with NaN changes nothing");
  }
}

// Rows of another type than the encoder's, so that they are staged, and enough of them for two panels.
template <class S, class Other>
void many_threads_select() {
  constexpr std::int64_t kLatents = 1300, kMost = 40;
  const std::vector<Other> x = numbers<Other>(kRows * kFeatures, 1, -1);
  const std::vector<S> weight = numbers<S>(kLatents * kFeatures, 2, -1), bias = numbers<S>(kLatents, 3, -1);
  const auto source = [](const auto& values, std::int64_t rows, std::int64_t cols) {
    using T = std::decay_t<decltype(values[0])>;
    return RowSource{values.data(), rows, cols, cols * static_cast<std::int64_t>(sizeof(T)), dtype_of<T>};
  };
  const RowSource rows = source(x, kRows, kFeatures), bias_row = source(bias, 1, kLatents);
  std::atomic<int> polls_left{-1};
  const auto make = [&](std::int64_t k) {
    return TopKEncoder(source(weight, kLatents, kFeatures), &bias_row, k, dtype_of<S>,
                       make_backend("cpu", Precision::full, [&] {
                         if (polls_left >= 0 && polls_left-- == 0) throw Cancelled();
                       }));
  };
  const TopKEncoder encoder = make(kMost);
  const auto encode = [&] {
    std::pair<std::vector<S>, std::vector<std::int32_t>> out{kRows * kMost, kRows * kMost};
    encoder.encode(rows, out.first.data(), out.second.data());
    return out;
  };
  set_num_threads(1);
  const auto alone = encode();
  set_num_threads(4);
  std::atomic<int> equal{0};
  std::vector<std::thread> encoders;
  for (int i = 0; i < 8; ++i) {
    encoders.emplace_back([&] {
      for (int k = 0; k < 2; ++k) equal += encode() == alone;
    });
  }
  for (std::thread& thread : encoders) thread.join();
  check(equal == 16, "8 threads select what one thread selects");
  for (const int polls : {0, 1, 5}) {
    polls_left = polls;
    check(throws<Cancelled>(encode), "a selection can be cancelled");
    polls_left = -1;
    check(encode() == alone, "selecting works after it was cancelled");
  }
  for (const std::int64_t k : {std::int64_t{0}, TopKEncoder::kMostK + 1})
    check(throws<ValueError>([&] { make(k); }), "k outside of its range is a ValueError");
}

void forked_child_works() {
  set_num_threads(4);
  Fixture<float> f, expected;
  f.train();
  expected.train(2);
  const pid_t child = fork();
  if (child == 0) {
    alarm(120);  // a child that hangs is a failure
    f.train();
    _exit(tensors_of(f.engine) == tensors_of(expected.engine) && f.encode() == expected.encode() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "a forked child trains and encodes");
  f.train();
  check(tensors_of(f.engine) == tensors_of(expected.engine), "its parent goes on");
}

}  // namespace

int main() {
  forked_child_works();
  training_is_equal_for_any_number_of_threads<float>();
  training_is_equal_for_any_number_of_threads<double>();
  sparse_codes_are_equal_for_any_number_of_threads();
  many_threads_encode<float>();
  many_threads_encode<double>();
  encoders_and_a_trainer_take_turns();
  cancelling_changes_nothing();
  tensors_carry_the_whole_state<float>();
  tensors_carry_the_whole_state<double>();
  bad_rows_change_nothing();
  many_threads_select<float, float>();
  many_threads_select<float, double>();
  many_threads_select<double, float>();
  return verdict(text("smoke, ", isa_name(), ", ", blas_name()));
}
