// How often a step of training goes through memory: each matrix of rows x units is written by one product and read by
// those that need it, sums and slopes ride in their epilogues, each parameter is updated once, and nothing is allocated.
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "core/error.h"
#include "kernels/list.h"
#include "like_the_cpu.h"
#include "testing.h"

namespace {

using namespace fastsae;

constexpr std::int64_t kFeatures = 11, kRows = 37;  // of a batch; no layer is as wide as another

// What was done with one tensor, or with all that are alike.
struct Uses {
  int written = 0;  // by products
  int factor = 0;   // read by products
  int beside = 0;   // read by the kernels of products
  int updated = 0;  // by the optimiser
  int others = 0;   // every other pass that reads or writes it
  friend bool operator==(const Uses&, const Uses&) = default;
  void operator+=(const Uses& more) {
    written += more.written, factor += more.factor, beside += more.beside;
    updated += more.updated, others += more.others;
  }
};

std::string shown(const Uses& uses) {
  return text("written ", uses.written, ", factor ", uses.factor, ", beside ", uses.beside, ", updated ",
              uses.updated, ", others ", uses.others);
}

std::size_t size_of(const Kernel& kernel) {
  std::size_t size = 0;
  for_each_type(KernelList{}, [&](auto* type) {
    using K = std::remove_pointer_t<decltype(type)>;
    if (kernel.index == IndexOf<K, KernelList>::value) size = sizeof(K);
  });
  return size;
}

bool is_update(const Kernel& kernel) {
  bool found = false;
  for_each_type(Concat<UpdateKernels<float>, UpdateKernels<double>>{}, [&](auto* type) {
    using K = std::remove_pointer_t<decltype(type)>;
    found = found || kernel.index == IndexOf<K, KernelList>::value;
  });
  return found;
}

// The CPU, which writes down what is done with each tensor.
class Counting final : public LikeTheCpu {
 public:
  Memory allocate(std::size_t bytes) override {
    ++allocated;
    return LikeTheCpu::allocate(bytes);
  }
  void product(Factor a, Factor b, Tensor out, bool accumulate, const Kernel* kernel, Sums sums) override {
    ++products;
    ++of(a.tensor).factor;
    ++of(b.tensor).factor;
    ++of(out).written;
    if (kernel != nullptr) each_read(*kernel, [](Uses& uses) { ++uses.beside; });
    LikeTheCpu::product(a, b, out, accumulate, kernel, sums);
  }
  void map(Tensor out, const Kernel& kernel, Sums sums) override {
    count(out, kernel);
    LikeTheCpu::map(out, kernel, sums);
  }
  void map_each(std::span<const Mapped> items) override {
    for (const Mapped& item : items) count(item.out, item.kernel);
    LikeTheCpu::map_each(items);
  }
  void copy(Tensor to, Tensor from) override {
    ++of(to).others;
    ++of(from).others;
    LikeTheCpu::copy(to, from);
  }
  void fill(Tensor to, double value) override {
    ++of(to).others;
    LikeTheCpu::fill(to, value);
  }
  void gather(const RowSource& source, const std::int64_t* order, Tensor out) override {
    ++of(out).others;
    LikeTheCpu::gather(source, order, out);
  }

  void know(const Tensor& tensor) { of(tensor); }
  void forget() {
    for (auto& [data, used] : uses_) used.uses = {};
    products = allocated = 0;
  }
  Uses of_tensor(const Tensor& tensor) const {
    const auto found = uses_.find(tensor.data);
    return found == uses_.end() ? Uses{} : found->second.uses;
  }
  // Of all matrices of a batch's rows, by their width; a column of numbers by row has width 1.
  std::map<std::int64_t, Uses> by_width() const {
    std::map<std::int64_t, Uses> all;
    for (const auto& [data, used] : uses_) {
      const Tensor& tensor = used.tensor;
      if (tensor.rows == kRows || tensor.size() == kRows) all[tensor.size() / kRows] += used.uses;
    }
    return all;
  }

  int products = 0, allocated = 0;

 private:
  struct Used {
    Tensor tensor;
    Uses uses;
  };

  Uses& of(const Tensor& tensor) {
    Used& used = uses_[tensor.data];
    used.tensor = tensor;
    return used.uses;
  }
  void count(const Tensor& out, const Kernel& kernel) {
    ++(is_update(kernel) ? of(out).updated : of(out).others);
    if (!is_update(kernel)) each_read(kernel, [](Uses& uses) { ++uses.others; });
  }
  // A kernel reads a tensor if it holds its address.
  template <class Do>
  void each_read(const Kernel& kernel, const Do& action) {
    for (std::size_t at = 0; at + sizeof(void*) <= size_of(kernel); at += sizeof(void*)) {
      const void* address;
      std::memcpy(&address, kernel.bytes + at, sizeof(address));
      if (const auto found = uses_.find(address); found != uses_.end()) action(found->second.uses);
    }
  }

  std::map<const void*, Used> uses_;
};

struct Case {
  std::string name;
  ModelSpec spec;
  std::string optimizer = "adam";
  bool ordered = false, weighted = false, aimed = false, clipped = false;
};

std::vector<Case> cases() {
  const auto classic = [](const std::string& penalty) {
    return classic_model(DType::f64, kFeatures, 7, "sigmoid", penalty);
  };
  std::vector<Case> all{{"kl", classic("kl")}, {"l1", classic("l1")}, {"no penalty", classic("none")}};
  all.push_back({"tied", classic("kl")});
  all.back().spec.tied = true;
  all.push_back({"moving rho_hat", classic("kl"), "momentum"});
  all.back().spec.moving_rho_hat = true;
  all.push_back({"decoupled decay", classic("kl"), "adamw"});
  all.back().spec.decoupled_decay = true;
  all.push_back({"cross entropy, float32",
                 classic_model(DType::f32, kFeatures, 7, "tanh", "kl", "sigmoid", "cross_entropy")});
  all.push_back({"in an order, with weights", classic("kl"), "sgd", true, true});
  all.push_back({"clipped, with a schedule and L1 on weights", classic("kl")});
  for (LayerSpec& layer : all.back().spec.layers) layer.weight_l1 = 1e-3;
  all.back().clipped = true;
  all.push_back({"with targets of its own", classic("l1"), "adam", false, false, true});
  const std::int64_t widths[] = {kFeatures, 9, 7, 5, 8, 6, kFeatures};
  std::vector<LayerSpec> layers;
  for (std::int64_t i = 1; i < 7; ++i) {
    layers.push_back(dense(i, widths[i - 1], widths[i], "sigmoid"));
    layers.back().penalty = i == 6 ? "none" : i % 2 == 0 ? "kl" : "l1";
    layers.back().beta = 0.2;
  }
  all.push_back({"deep", model_of(std::move(layers), DType::f64)});
  all.push_back({"deep, moving rho_hat, in an order", all.back().spec, "adam", true});
  all.back().spec.moving_rho_hat = true;
  return all;
}

OptimizerSpec optimizer_of(const Case& c) {
  OptimizerSpec spec{c.optimizer, 1e-3, 0.9, 0.9, 0.999, 1e-8};
  if (c.clipped) {
    spec.max_gradient_norm = 1e-3;
    spec.schedule = {"cosine", 2, 100};
  }
  return spec;
}

// An engine with rows for four batches.
struct Fixture {
  Fixture(const Case& c, std::unique_ptr<Backend> backend)
      : given(c), engine(c.spec, optimizer_of(c), std::move(backend), 0) {
    for (std::int64_t i = 0; i < 4 * kRows; ++i) order.push_back(i * 5 % (4 * kRows));
  }
  void train(std::int64_t steps) {
    const auto rows_of = [](const auto& values) {
      using S = std::decay_t<decltype(values[0])>;
      return RowSource{values.data(), 4 * kRows, kFeatures, kFeatures * std::int64_t{sizeof(S)}, dtype_of<S>};
    };
    Examples examples{engine.dtype() == DType::f32 ? rows_of(narrow) : rows_of(x)};
    if (given.weighted) examples.weights = weights.data();
    if (given.aimed) examples.target = rows_of(y);
    engine.run(examples, given.ordered ? order.data() : nullptr, steps * kRows, kRows);
  }

  const Case& given;
  Engine engine;
  const std::vector<double> x = numbers(4 * kRows * kFeatures, 1), y = numbers(4 * kRows * kFeatures, 2),
                            weights = numbers(4 * kRows, 3);
  const std::vector<float> narrow{x.begin(), x.end()};
  std::vector<std::int64_t> order;
};

// What the mathematics asks for. A hidden layer's activation is read by the next layer, by that layer's weight gradient
// and for its slope; its delta by its weight gradient and by the layer below, if there is one. The rows are read by the
// first layer, its weight gradient and the loss.
std::map<std::int64_t, Uses> least(const Case& c) {
  std::map<std::int64_t, Uses> all;
  const std::size_t depth = c.spec.layers.size();
  for (std::size_t i = 0; i + 1 < depth; ++i) all[c.spec.layers[i].out.size()] += {2, i > 0 ? 4 : 3, 1};
  all[kFeatures] += {1, 4, 1};
  if (c.ordered) all[kFeatures] += {.others = 1};  // the rows are gathered
  // A row's weight is read by each epilogue over rows, whether all are 1 or they are gathered too.
  all[1] += {.beside = static_cast<int>(2 * depth - 1), .others = c.weighted};
  return all;
}

void one_step_makes_the_fewest_passes(const Case& c) {
  auto backend = std::make_unique<Counting>();
  Counting& counts = *backend;
  Fixture f(c, std::move(backend));
  for (const auto* rows : {&f.x, &f.y})
    counts.know({const_cast<double*>(rows->data()), kRows, kFeatures, kFeatures, DType::f64});
  f.train(1);
  counts.forget();
  f.train(1);
  const auto depth = static_cast<int>(c.spec.layers.size());
  check(counts.products == 3 * depth - 1, text(c.name, ": ", counts.products, " products"));
  check(counts.allocated == 0, c.name + ": memory of the device is allocated");
  auto seen = counts.by_width();
  for (const auto& [width, uses] : least(c))
    check(seen[width] == uses,
          text(c.name, ", rows x ", width, ": ", shown(seen[width]), "; wanted ", shown(uses)));
  for (const auto& [width, uses] : seen)
    check(least(c).count(width) == 1 || uses == Uses{}, text(c.name, ", rows x ", width, ": ", shown(uses)));

  for (const std::string& name : f.engine.names()) {
    if (name[0] != 'W' && name[0] != 'b') continue;
    const int number = std::atoi(name.c_str() + 1), tied = c.spec.tied ? 2 : 1;
    const Uses used = counts.of_tensor(f.engine.tensor(name)),
               gradient = counts.of_tensor(f.engine.tensor("gradient." + name));
    if (name[0] == 'b') {  // read by one epilogue; its gradient is made from sums
      check(used == Uses{.beside = 1, .updated = 1}, name + ", " + c.name + ": " + shown(used));
      check(gradient == Uses{.others = 1}, "gradient." + name + ", " + c.name + ": " + shown(gradient));
    } else {  // read forwards, backwards but by the first layer, and for its decay
      const int factor = c.spec.tied ? 3 : number == 1 ? 1 : 2;
      check(used == Uses{0, factor, 1, 1}, name + ", " + c.name + ": " + shown(used));
      check(gradient == Uses{.written = tied}, "gradient." + name + ", " + c.name + ": " + shown(gradient));
    }
  }
}

// The column of weights that are all 1 is kept from step to step, but not where it was written over.
void weights_come_and_go() {
  const Case plain{"", classic_model(DType::f64, kFeatures, 7)};
  Fixture kept(plain, make_backend("cpu", Precision::full, {})),
      given(plain, make_backend("cpu", Precision::full, {}));
  const std::vector<double> ones(4 * kRows, 1.0);
  const RowSource x{kept.x.data(), 4 * kRows, kFeatures, kFeatures * 8, DType::f64};
  for (const bool weighted : {false, true, false, false, true, true, false}) {
    for (const std::int64_t batch : {kRows, 2 * kRows, kRows / 2}) {
      const double* weights = kept.weights.data();
      kept.engine.run({x, weighted ? weights : nullptr}, nullptr, 4 * kRows, batch);
      given.engine.run({x, weighted ? weights : ones.data()}, nullptr, 4 * kRows, batch);
    }
  }
  check(largest_difference(kept.engine, given.engine) == 0, "rows without weights weigh 1 each");
}

}  // namespace

int main() {
  for (const Case& c : cases()) one_step_makes_the_fewest_passes(c);
  weights_come_and_go();
  return verdict("passes");
}
