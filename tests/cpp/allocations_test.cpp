// Nothing is allocated where a service calls again and again, nor by a step of training.
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "backend/process.h"
#include "engine/engine.h"
#include "testing.h"

namespace {
std::atomic<std::int64_t> allocations{0};
}

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

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

}  // namespace

int main() {
  set_num_threads(1);
  test<float>("float32");
  test<double>("float64");
  set_num_threads(2);
  test<float>("float32, 2 threads");
  return verdict("allocations_test");
}
