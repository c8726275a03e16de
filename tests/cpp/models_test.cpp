// Models of every kind of layer on a device that a serial team plays: whole trainings must give what the CPU gives.
#include <cmath>
#include <cstring>
#include <functional>

#include "core/error.h"
#include "kernels/list.h"
#include "serial_device.h"
#include "testing.h"

namespace {

using namespace fastsae;

std::unique_ptr<Backend> cpu_device() { return make_backend("cpu", Precision::full, {}); }

// ---- windows over images

Windows windows_of(std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t kernel,
                   std::int64_t stride, std::int64_t padding) {
  const auto count = [&](std::int64_t size) { return (size + 2 * padding - kernel) / stride + 1; };
  return {channels, height, width, kernel, stride, padding, count(height), count(width)};
}

// Columns lie further apart than they are wide; what is between them must stay as it was.
template <class S>
void windows_move_as_on_the_cpu(const Windows& windows, std::int64_t images) {
  const std::string name =
      text("windows of ", windows.kernel, " every ", windows.stride, ", padding ", windows.padding, ", ",
           images, " of ", windows.channels, " x ", windows.height, " x ", windows.width, ": ");
  const std::int64_t pixels = images * windows.height * windows.width, rows = images * windows.per_image();
  const std::int64_t stride = windows.size() + 3;
  std::vector<S> image = numbers<S>(pixels * windows.channels, 1, -1),
                 column = numbers<S>(rows * stride, 2, -1);
  const auto of = [](std::vector<S>& values, std::int64_t count, std::int64_t cols, std::int64_t apart) {
    return Tensor{values.data(), count, cols, apart, dtype_of<S>};
  };
  std::vector<S> columns[2] = {column, column}, folded[2] = {image, image}, passed[2] = {image, image};
  std::vector<double> sums[2];
  const std::vector<S> bias = numbers<S>(windows.channels, 3), weight = numbers<S>(pixels, 4);
  const Kernel kernel = as_kernel(Activate<S, Sigmoid, L1Penalty>{bias.data(), weight.data()});
  for (const int which : {0, 1}) {
    const auto backend = which == 0 ? cuda::serial_device() : cpu_device();
    const auto pixels_of = [&](std::vector<S>& values) {
      return of(values, pixels, windows.channels, windows.channels);
    };
    backend->unfold(windows, pixels_of(image), of(columns[which], rows, windows.size(), stride));
    const Tensor from = of(column, rows, windows.size(), stride);
    backend->fold(windows, from, pixels_of(folded[which]), nullptr, {});
    sums[which].assign(static_cast<std::size_t>(2 * windows.channels), 0.5);
    const Tensor into{sums[which].data(), 2, windows.channels, windows.channels, DType::f64};
    backend->fold(windows, from, pixels_of(passed[which]), &kernel, {into, true});
  }
  const auto equal = [](const auto& a, const auto& b) {
    return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
  };
  check(equal(columns[0], columns[1]) && columns[0] != column, name + "unfold");
  const double tolerance = sizeof(S) == 4 ? 1e-5 : 1e-13;
  const auto close = [&](const auto& a, const auto& b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      if (!(std::fabs(a[i] - b[i]) <= tolerance * (1 + std::fabs(b[i])))) return false;
    }
    return true;
  };
  check(close(folded[0], folded[1]) && folded[0] != image, name + "fold");
  check(close(passed[0], passed[1]) && close(sums[0], sums[1]), name + "fold with a kernel and its sums");
}

void every_window() {
  // channels, height, width, kernel, stride, padding, images
  const std::int64_t shapes[][7] = {{1, 28, 28, 3, 2, 1, 3}, {3, 9, 7, 3, 1, 1, 4}, {16, 7, 5, 5, 2, 2, 2},
                                    {70, 4, 4, 3, 1, 0, 3},  {5, 8, 8, 2, 3, 0, 7}, {2, 6, 6, 1, 1, 0, 20},
                                    {300, 3, 3, 3, 1, 1, 1}, {4, 5, 5, 5, 1, 0, 9}, {1, 11, 3, 3, 4, 2, 40},
                                    {7, 1, 1, 1, 1, 0, 1000}};
  for (const auto& [channels, height, width, kernel, stride, padding, images] : shapes) {
    const Windows windows = windows_of(channels, height, width, kernel, stride, padding);
    windows_move_as_on_the_cpu<float>(windows, images);
    windows_move_as_on_the_cpu<double>(windows, images);
  }
}

// ---- trainings

constexpr std::int64_t kRows = 61, kBatch = 20;

struct Problem {
  std::string name;
  ModelSpec spec;
  bool targets = false, numbers = false;
  StatePrecision state_precision = StatePrecision::full;
};

std::unique_ptr<Engine> engine_of(const ModelSpec& spec, std::unique_ptr<Backend> backend,
                                  std::int64_t full_batch_rows = 0,
                                  StatePrecision state_precision = StatePrecision::full) {
  // A rate and a scale of the gradient that change from step to step, recorded or not.
  OptimizerSpec optimizer{"adam", 1e-2, 0.9, 0.9, 0.999, 1e-8, 0.05};
  optimizer.schedule = {"cosine", 3, 10, 0.2};
  optimizer.state_precision = state_precision;
  auto engine = std::make_unique<Engine>(spec, optimizer, std::move(backend), full_batch_rows);
  std::uint32_t seed = 7;
  for (const std::string& name : engine->names()) {
    if (name[0] != 'W' && name[0] != 'b') continue;
    std::vector<double> values = numbers(engine->tensor(name).size(), ++seed, -1);
    for (double& value : values) value *= 0.3;
    engine->write(name, values.data());
  }
  engine->set_noise_seed(5);
  return engine;
}

struct Data {
  explicit Data(const ModelSpec& spec)
      : x(numbers(kRows * spec.n_features, 1)), y(numbers(kRows * spec.n_outputs, 3)), spec_(spec) {}
  Examples examples(const Problem& problem, bool weighted = true) const {
    Examples given{rows_of(x, spec_.n_features)};
    if (weighted) given.weights = weights.data();
    if (problem.targets) given.target = rows_of(y, spec_.n_outputs);
    if (problem.numbers) given.numbers = ids.data();
    return given;
  }
  const std::vector<double> x, y, weights = numbers(kRows, 2);
  const std::vector<std::int64_t> order = steps_of(7), ids = steps_of(11);

 private:
  static RowSource rows_of(const std::vector<double>& values, std::int64_t cols) {
    return {values.data(), kRows, cols, cols * 8, DType::f64};
  }
  static std::vector<std::int64_t> steps_of(std::int64_t step) {
    std::vector<std::int64_t> rows;
    for (std::int64_t i = 0; i < kRows; ++i) rows.push_back(i * step % kRows);
    return rows;
  }
  const ModelSpec& spec_;
};

bool close(double a, double b) { return std::fabs(a - b) <= 1e-11 * (1 + std::fabs(b)); }

// What encode() gives, as elements.
bool are_elements_of(const Engine::SparseRows& elements, const std::vector<double>& code) {
  const auto* values = reinterpret_cast<const double*>(elements.values.data());
  const std::size_t width = code.size() / kRows;
  std::size_t at = 0;
  bool same = elements.starts.size() == kRows + 1 && elements.values.size() == 8 * elements.columns.size();
  for (std::size_t i = 0; same && i < code.size(); ++i) {
    if (i % width == 0) same = elements.starts[i / width] == static_cast<std::int64_t>(at);
    if (code[i] == 0) continue;
    same = same && at < elements.columns.size() &&
           elements.columns[at] == static_cast<std::int32_t>(i % width) && values[at] == code[i];
    ++at;
  }
  return same && at == elements.columns.size();
}

void same_inference(const Problem& problem, const Engine& a, const Engine& b, const Data& data) {
  const ModelSpec& spec = problem.spec;
  const auto width = static_cast<std::size_t>(a.code_width());
  std::vector<double> results[2];
  const Engine* engines[] = {&a, &b};
  for (const int which : {0, 1}) {
    const Engine& engine = *engines[which];
    const auto given = data.examples(problem);
    std::vector<double> code(kRows * width), output(static_cast<std::size_t>(kRows * spec.n_outputs)),
        decoded = output, losses(kRows), moments;
    engine.encode(given.x, code.data());
    check(are_elements_of(engine.encode_sparse(given.x), code), problem.name + ": elements of the code");
    engine.reconstruct(given.x, output.data());
    const RowSource codes{code.data(), kRows, a.code_width(), a.code_width() * 8, DType::f64};
    engine.decode(codes, decoded.data());
    const bool own = spec.n_outputs == spec.n_features && !problem.targets;
    const Problem with_targets{"", spec, true};
    engine.score(given.x, own ? given.x : data.examples(with_targets).target, losses.data());
    if (engine.has_distribution()) {
      moments.resize(2 * kRows * width);
      engine.encode_distribution(given.x, moments.data());
    }
    for (const auto* part : {&code, &output, &decoded, &losses, &moments})
      results[which].insert(results[which].end(), part->begin(), part->end());
  }
  bool same = results[0].size() == results[1].size();
  for (std::size_t i = 0; same && i < results[0].size(); ++i) same = close(results[0][i], results[1][i]);
  check(same, problem.name + ": inference");
}

void trains_as_the_cpu(const Problem& problem) {
  const Data data(problem.spec);
  const auto serial = engine_of(problem.spec, cuda::serial_device(), 0, problem.state_precision);
  const auto cpu = engine_of(problem.spec, cpu_device(), 0, problem.state_precision);
  for (Engine* engine : {serial.get(), cpu.get()}) {
    for (int epoch = 0; epoch < 3; ++epoch) {
      engine->set_epoch(epoch);
      engine->run(data.examples(problem), epoch == 1 ? nullptr : data.order.data(), kRows, kBatch);
    }
  }
  check(serial->steps() == 12 && cpu->steps() == 12, problem.name + ": steps");
  const bool whole = problem.spec.sparse_code.has_value();  // its batches are not cut
  if (whole) {                                              // gradients of its matrices are there only then
    for (Engine* engine : {serial.get(), cpu.get()}) engine->gradient(data.examples(problem));
  }
  const double difference = largest_difference(*serial, *cpu);
  check(difference < 1e-12, text(problem.name, ": parameters, state and gradients differ by ", difference));
  check(close(serial->metrics().sums.loss(), cpu->metrics().sums.loss()), problem.name + ": metrics");
  same_inference(problem, *serial, *cpu, data);
  // In chunks, which share their means.
  const auto chunks = engine_of(problem.spec, cuda::serial_device(), whole ? 0 : 17, problem.state_precision);
  for (const std::string& name : cpu->names()) {
    if (whole && name.rfind("gradient", 0) == 0) continue;
    const Tensor tensor = cpu->tensor(name);
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.rows) * tensor.row_bytes());
    cpu->read(name, bytes.data());
    chunks->write(name, bytes.data());
  }
  chunks->set_steps(cpu->steps());
  for (Engine* engine : {chunks.get(), cpu.get()}) engine->set_epoch(9);
  const Cost a = chunks->gradient(data.examples(problem)), b = cpu->gradient(data.examples(problem));
  check(close(a.loss(), b.loss()) && close(a.gradient_norm, b.gradient_norm), problem.name + ": chunks");
  check(largest_difference(*chunks, *cpu) < 1e-12, problem.name + ": gradient of chunks");
}

// ---- models

LayerSpec layer_of(const std::string& kind, std::int64_t number, const Shape& in, const Shape& out,
                   const std::string& activation = "identity") {
  LayerSpec layer = dense(number, 0, 0, activation);
  layer.kind = kind;
  layer.in = in;
  layer.out = out;
  return layer;
}

LayerSpec windowed(const std::string& kind, std::int64_t number, const Shape& in, const Shape& out,
                   std::int64_t kernel, std::int64_t stride = 1, std::int64_t padding = 0,
                   const std::string& activation = "identity") {
  LayerSpec layer = layer_of(kind, number, in, out, activation);
  layer.kernel = kernel;
  layer.stride = stride;
  layer.padding = padding;
  return layer;
}

LayerSpec with_penalty(LayerSpec layer, const std::string& penalty) {
  layer.penalty = penalty;
  layer.beta = 0.3;
  return layer;
}

Problem convolutional() {
  const Shape image{2, 7, 6}, map{3, 4, 3}, deep{19, 2, 2};
  return {"convolutional", model_of({with_penalty(windowed("conv", 1, image, map, 3, 2, 1, "relu"), "l1"),
                                     with_penalty(windowed("conv", 2, map, deep, 3, 2, 1, "sigmoid"), "kl"),
                                     windowed("conv_transpose", 3, deep, map, 3, 2, 1, "tanh"),
                                     windowed("conv_transpose", 4, map, image, 3, 2, 1, "sigmoid")},
                                    DType::f64)};
}

// The maxima go back to where they were; the code is an image, and the error of each pixel has one channel.
Problem pooled() {
  const Shape image{1, 8, 9}, maps{4, 8, 9}, halves{4, 4, 4};
  std::vector<LayerSpec> layers{with_penalty(windowed("conv", 1, image, maps, 3, 1, 1, "softplus"), "log"),
                                windowed("max_pool", 2, maps, halves, 2),
                                windowed("max_unpool", 3, halves, maps, 2),
                                windowed("conv", 4, maps, image, 1, 1, 0, "identity")};
  layers[2].places_of = 2;
  return {"pooled", model_of(layers, DType::f64)};
}

Problem through_a_bottleneck() {
  const Shape image{3, 6, 6}, maps{5, 6, 6}, halves{5, 3, 3}, flat{45, 1, 1};
  return {"bottleneck",
          model_of({windowed("conv", 1, image, maps, 3, 1, 1, "tanh"),
                    windowed("mean_pool", 2, maps, halves, 2), layer_of("reshape", 3, halves, flat),
                    with_penalty(dense(4, 45, 4, "sigmoid"), "kl"), dense(5, 4, 45, "relu"),
                    layer_of("reshape", 6, flat, halves), windowed("upsample", 7, halves, maps, 2),
                    windowed("conv_transpose", 8, maps, image, 5, 1, 2, "sigmoid")},
                   DType::f64, "cross_entropy")};
}

Problem variational() {
  LayerSpec code = layer_of("gaussian", 2, Shape{11}, Shape{5});
  code.beta = 0.7;
  code.free_bits = 0.01;
  code.warm_up = 2;
  ModelSpec spec =
      model_of({dense(1, 9, 11, "tanh"), code, dense(3, 5, 11, "tanh"), dense(4, 11, 9, "sigmoid")},
               DType::f64, "cross_entropy");
  return {"variational", spec, false, true};
}

Problem contractive(double hessian) {
  Problem problem{"contractive", classic_model(DType::f64, 9, 37, "sigmoid", "none"), false, true};
  problem.spec.contraction = {0.2, hessian, 0.1};
  return problem;
}

Problem with_l1(Problem problem) {
  problem.name += " with L1";
  for (LayerSpec& layer : problem.spec.layers) layer.weight_l1 = 0.01 * static_cast<double>(layer.number);
  return problem;
}

Problem deep_contractive() {
  Problem problem{"deep contractive", model_of({dense(1, 9, 12, "softplus"), dense(2, 12, 5, "tanh"),
                                                dense(3, 5, 12, "relu"), dense(4, 12, 9, "identity")},
                                               DType::f64)};
  problem.spec.contraction = {0.2, 0, 0};
  return problem;
}

Problem corrupted(const std::string& kind, double emphasis) {
  Problem problem{"corrupted by " + kind, classic_model(DType::f64, 10, 37), false, true};
  problem.spec.corruption = {kind, 0.3, 0, 1, emphasis, emphasis == 1 ? 1 : 0.5};
  return problem;
}

// ---- sparse codes

struct Sparse {
  const char* name;
  const char* activation;
  std::int64_t latents = 40;
  double k = 3;
  std::function<void(SparseCodeSpec&)> change = [](SparseCodeSpec&) {};
  std::int64_t outputs = 11;
  StatePrecision state_precision = StatePrecision::full;
};

Problem sparse(const Sparse& of) {
  Problem problem{of.name, sparse_model(DType::f64, 11, of.latents, of.activation)};
  SparseCodeSpec& code = *problem.spec.sparse_code;
  code.k = code.k_start = of.k;
  of.change(code);
  problem.spec.n_outputs = of.outputs;
  problem.targets = of.outputs != 11;
  problem.state_precision = of.state_precision;
  return problem;
}

void every_sparse_code() {
  const auto dead_soon = [](SparseCodeSpec& code) { code.dead_after = 30; };
  const auto nested = [](SparseCodeSpec& code) {
    code.prefixes = {7, 20, 40};
    code.prefix_weights = {0.5, 1, 2};
    code.dead_after = 30;
    code.decoder_norm = "rescale";
  };
  const auto across = [](SparseCodeSpec& code) {
    code.pre_bias = false;
    code.skip = true;
    code.decoder_norm = "free";
    code.dead_after = 30;
    code.aux_relu = false;
  };
  const Sparse codes[] = {
      {"topk", "topk", 40, 3, dead_soon},
      {"topk, k 1", "topk", 40, 1},
      {"topk of all", "topk", 40, 40},
      {"topk, one latent", "topk", 1, 1, dead_soon},
      {"topk, all of the dead", "topk", 700, 2,
       [](SparseCodeSpec& code) { code.dead_after = 15, code.aux_k = 650; }},
      {"topk rescaled", "topk", 40, 3,
       [](SparseCodeSpec& code) { code.dead_after = 30, code.decoder_norm = "rescale"; }},
      {"transcoder", "topk", 40, 3, across, 6},
      {"batch_topk", "batch_topk", 40, 2.5, dead_soon},
      {"batch_topk of all", "batch_topk", 40, 40, nested},
      {"batch_topk, nested", "batch_topk", 40, 2.5, nested},
      {"batch_topk, many latents", "batch_topk", 2500, 2.5, dead_soon},
      {"batch_topk, transcoder", "batch_topk", 40, 3, across, 6},
      {"relu", "relu"},
      {"relu, tanh", "relu", 300, 3,
       [](SparseCodeSpec& code) { code.sparsity = "tanh", code.tanh_scale = 4; }},
      {"jump_relu", "jump_relu", 40, 3,
       [](SparseCodeSpec& code) {
         code.sparsity = "quadratic", code.target_l0 = 5;
         code.pre_act_weight = 0.1, code.dead_after = 30;
       }},
      {"jump_relu, rows", "jump_relu", 300, 3,
       [](SparseCodeSpec& code) { code.sparsity = "quadratic_rows", code.target_l0 = 5; }},
      {"gated", "gated"},
      {"topk, moments in bf16", "topk", 40, 3, dead_soon, 11, StatePrecision::bf16},
      {"topk, moments in 8 bits", "topk", 40, 3, dead_soon, 11, StatePrecision::eight_bits},
      {"transcoder, moments in 8 bits", "topk", 40, 3, across, 6, StatePrecision::eight_bits},
      {"gated, moments in bf16", "gated", 40, 3, [](SparseCodeSpec&) {}, 11, StatePrecision::bf16},
      {"gated, not detached", "gated", 40, 3, [](SparseCodeSpec& code) { code.gate_detached = false; }},
  };
  for (const Sparse& code : codes) trains_as_the_cpu(sparse(code));
}

// A step is recorded for its rows with or without targets, and must not be replayed for the other.
void targets_come_and_go() {
  const Problem plain{"", classic_model(DType::f64, 9, 8)}, aimed{"", plain.spec, true};
  const Data data(plain.spec);
  const auto serial = engine_of(plain.spec, cuda::serial_device());
  const auto cpu = engine_of(plain.spec, cpu_device());
  for (Engine* engine : {serial.get(), cpu.get()}) {
    for (const Problem* problem : {&plain, &aimed, &plain, &aimed, &aimed, &plain})
      engine->run(data.examples(*problem), data.order.data(), kRows, kBatch);
  }
  check(largest_difference(*serial, *cpu) < 1e-12, "targets come and go");
}

}  // namespace

int main() {
  every_sparse_code();
  every_window();
  targets_come_and_go();
  trains_as_the_cpu(
      {"softmax", model_of({dense(1, 9, 8, "relu"), dense(2, 8, 4, "softmax")}, DType::f64, "cross_entropy"),
       true});
  trains_as_the_cpu({"targets of their own",
                     model_of({dense(1, 9, 8, "relu"), dense(2, 8, 4, "sigmoid")}, DType::f64), true});
  for (const Problem& problem :
       {convolutional(), pooled(), through_a_bottleneck(), variational(), contractive(0), contractive(0.1),
        deep_contractive(), with_l1(convolutional()), with_l1(contractive(0.1)), with_l1(deep_contractive()),
        corrupted("masking", 1), corrupted("masking", 2), corrupted("gaussian", 1),
        corrupted("salt_and_pepper", 3)})
    trains_as_the_cpu(problem);
  return verdict("models");
}
