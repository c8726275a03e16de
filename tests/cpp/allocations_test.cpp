// Nothing is allocated where a service calls again and again, nor by a step of training.
#include <atomic>
#include <cstdlib>
#include <map>
#include <new>
#include <vector>

#include "backend/process.h"
#include "engine/engine.h"
#include "testing.h"

namespace {
std::atomic<std::int64_t> allocations{0};
}

// Not inlined: a compiler would see memory of malloc given to delete, or that of new to free.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

using namespace fastsae;

// Of the second call of many.
template <class Body>
std::int64_t allocations_of(const Body& body) {
  for (int i = 0; i < 3; ++i) body();
  const std::int64_t before = allocations;
  body();
  return allocations - before;
}

template <class S>
void test(const std::string& name) {
  constexpr std::int64_t kFeatures = 784, kHidden = 196, kRows = 64;
  ModelSpec spec = classic_model(dtype_of<S>, kFeatures, kHidden, "sigmoid", "kl", "sigmoid");
  spec.layers[0].beta = 3;
  spec.layers[0].rho = 0.05;
  Engine engine(spec, {"adam", 1e-3, 0.9, 0.9, 0.999, 1e-8}, make_backend("cpu", Precision::full, {}), 0);
  for (const char* weights : {"W1", "W2"}) {
    std::vector<S> values = numbers<S>(engine.tensor(weights).size(), 7, -1);
    for (S& value : values) value *= S(0.01);
    engine.write(weights, values.data());
  }
  const std::vector<S> x = numbers<S>(kRows * kFeatures, 1);
  std::vector<S> code(kRows * kHidden), output(kRows * kFeatures);
  for (const std::int64_t count : {std::int64_t{1}, std::int64_t{8}, kRows}) {
    const RowSource rows{x.data(), count, kFeatures, kFeatures * sizeof(S), dtype_of<S>};
    const auto none = [&](const char* what, std::int64_t found) {
      check(found == 0, name + ": " + what + " of " + std::to_string(count) + " rows allocates " +
                            std::to_string(found) + " times");
    };
    none("encode", allocations_of([&] { engine.encode(rows, code.data()); }));
    none("reconstruct", allocations_of([&] { engine.reconstruct(rows, output.data()); }));
    none("a step", allocations_of([&] { engine.run({rows}, nullptr, count, count); }));
  }
}

// Models whose steps differ from the classic one's, with 11 features.
std::map<std::string, ModelSpec> other_models() {
  const auto classic = [](const std::string& activation, const std::string& penalty) {
    return classic_model(DType::f64, 11, 7, activation, penalty);
  };
  std::map<std::string, ModelSpec> all;
  all["tied"] = all["moving rho_hat"] = classic("sigmoid", "kl");
  all["tied"].tied = all["moving rho_hat"].moving_rho_hat = true;
  all["deep"] = model_of({dense(1, 11, 9, "tanh"), dense(2, 9, 5, "sigmoid"), dense(3, 5, 9, "relu"),
                          dense(4, 9, 11, "sigmoid")},
                         DType::f64, "cross_entropy");
  all["softmax"] =
      model_of({dense(1, 11, 7, "relu"), dense(2, 7, 11, "softmax")}, DType::f64, "cross_entropy");
  for (const char* kind : {"masking", "gaussian", "salt_and_pepper"}) {
    all[kind] = classic("sigmoid", "l1");
    all[kind].corruption = {kind, 0.3, 0, 1, 1, 1};
  }
  all["contractive"] = classic("sigmoid", "none");
  all["contractive"].contraction = {0.2, 0.1, 0.1};
  all["winners"] = classic("relu", "none");
  all["winners"].layers[0].winners = "lifetime";
  all["winners"].layers[0].lifetime = 0.2;
  LayerSpec code = dense(1, 11, 5, "identity");
  code.kind = "gaussian";
  code.beta = 0.7;
  all["variational"] = model_of({code, dense(2, 5, 11, "sigmoid")}, DType::f64);
  for (const char* activation : {"topk", "batch_topk", "relu", "jump_relu", "gated"})
    all[activation] = sparse_model(DType::f64, 11, 40, activation);
  all["topk"].sparse_code->dead_after = 300;
  all["topk"].sparse_code->decoder_norm = "rescale";
  all["batch_topk"].sparse_code->prefixes = {15, 40};
  all["batch_topk"].sparse_code->prefix_weights = {1, 2};
  for (const char* activation : {"topk", "batch_topk"})  // large enough for rounded scores
    all[std::string(activation) + ", rounded"] = sparse_model(DType::f32, 160, 2100, activation);
  return all;
}

// Four steps in an order, with weights and targets, or as the rows lie; clipped, with a schedule.
void test_steps_of(const std::string& name, const ModelSpec& spec) {
  const std::int64_t width = spec.n_features, size = width == 11 ? 37 : 260, all = 4 * size;
  OptimizerSpec optimizer{"adam", 1e-3, 0.9, 0.9, 0.999, 1e-8, 1e-3};
  optimizer.schedule = {"cosine", 2, 100};
  Engine engine(spec, optimizer, make_backend("cpu", Precision::full, {}), 0);
  const std::vector<double> x = numbers(all * width, 1), weights = numbers(all, 2);
  std::vector<std::int64_t> order;
  for (std::int64_t i = 0; i < all; ++i) order.push_back(i * 3 % all);
  const RowSource rows{x.data(), all, width, width * static_cast<std::int64_t>(sizeof(double)), DType::f64};
  const auto made = [&](const Examples& examples, const std::int64_t* taken) {
    return allocations_of([&] { engine.run(examples, taken, all, size); });
  };
  check(made({rows}, nullptr) == 0, name + ": steps allocate");
  check(made({rows, weights.data(), rows}, order.data()) == 0, name + ": steps in an order allocate");
}

}  // namespace

int main() {
  for (const int threads : {1, 4}) {
    set_num_threads(threads);
    for (const auto& [name, spec] : other_models()) test_steps_of(name, spec);
  }
  set_num_threads(1);
  test<float>("float32");
  test<double>("float64");
  set_num_threads(2);
  test<float>("float32, 2 threads");
  return verdict("allocations_test");
}
