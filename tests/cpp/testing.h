// What the native tests share: failures are counted, numbers are the same on every machine, engines are compared.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "math/low_precision.h"

namespace fastsae {

inline int failures = 0;

inline void check(bool holds, const std::string& what) {
  if (holds) return;
  if (++failures <= 30) std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// What main returns.
inline int verdict(const std::string& name) {
  std::printf("%s: %d failures\n", name.c_str(), failures);
  return failures == 0 ? 0 : 1;
}

class Numbers {
 public:
  explicit Numbers(std::uint32_t seed) : state_(seed) {}
  std::uint32_t bits() {  // the high ones are the better ones
    state_ = state_ * 1664525u + 1013904223u;
    return state_;
  }
  double between(double low, double high) {  // exclusive
    return low + (high - low) * ((bits() >> 8) + 0.5) * 0x1p-24;
  }

 private:
  std::uint32_t state_;
};

// Numbers in (low, 1).
template <class S = double>
std::vector<S> numbers(std::int64_t count, std::uint32_t seed, double low = 0) {
  Numbers source(seed);
  std::vector<S> values(static_cast<std::size_t>(count));
  for (S& value : values) value = static_cast<S>(source.between(low, 1));
  return values;
}

// A layer of units that all others see, without a penalty.
inline LayerSpec dense(std::int64_t number, std::int64_t in, std::int64_t out,
                       const std::string& activation) {
  LayerSpec layer{};
  layer.kind = "dense";
  layer.number = number;
  layer.in.channels = in;
  layer.out.channels = out;
  layer.activation = activation;
  layer.penalty = "none";
  layer.rho = 0.1;
  layer.weight_decay = 1e-3;
  return layer;
}

// A list of layers whose middle is the code.
inline ModelSpec model_of(std::vector<LayerSpec> layers, DType dtype,
                          const std::string& loss = "squared_error") {
  ModelSpec spec{};
  spec.n_features = layers.front().in.size();
  spec.n_outputs = layers.back().out.size();
  spec.code_layer = static_cast<std::int64_t>(layers.size()) / 2;
  spec.layers = std::move(layers);
  spec.corruption = {"none", 0, 0, 0, 1, 1};
  spec.loss = loss;
  spec.loss_reduction = "mean";
  spec.rho_hat_decay = 0.8;
  spec.dtype = dtype;
  return spec;
}

// One sparse hidden layer.
inline ModelSpec classic_model(DType dtype, std::int64_t features, std::int64_t hidden,
                               const std::string& activation = "sigmoid", const std::string& penalty = "kl",
                               const std::string& output = "sigmoid",
                               const std::string& loss = "squared_error") {
  ModelSpec spec =
      model_of({dense(1, features, hidden, activation), dense(2, hidden, features, output)}, dtype, loss);
  spec.layers[0].penalty = penalty;
  spec.layers[0].beta = 0.3;
  return spec;
}

// A sparse code; `activation` as python/fastsae/sparse_code.py names it.
inline ModelSpec sparse_model(DType dtype, std::int64_t features, std::int64_t latents,
                              const std::string& activation) {
  SparseCodeSpec code{};
  code.latents = latents;
  code.activation = activation;
  code.pre_bias = true;
  code.decoder_norm = "unit";
  code.project_gradient = true;
  code.k = code.k_start = 3;
  code.prefixes = {latents};
  code.prefix_weights = {1};
  code.sparsity = activation == "topk" || activation == "batch_topk" ? "none" : "l1";
  code.sparsity_weight = 0.1;
  code.sparsity_by_norm = true;
  code.bandwidth = 0.1;
  code.gate_weight = 1;
  code.aux_k = features / 2;
  code.aux_weight = 1.0 / 32;
  code.aux_relu = code.aux_share = true;
  code.aux_reduction = "residual";
  code.dead_after = -1;
  code.threshold_decay = 0.9;
  ModelSpec spec{};
  spec.sparse_code = code;
  spec.n_features = spec.n_outputs = features;
  spec.loss_reduction = "sum";
  spec.dtype = dtype;
  return spec;
}

inline std::vector<double> values_of(const Engine& engine, const std::string& name) {
  const DType dtype = engine.tensor(name).dtype;
  const auto size = static_cast<std::size_t>(engine.tensor(name).size());
  std::vector<double> values(size);
  const auto read = [&](auto as, const auto& number) {
    std::vector<decltype(as)> held(size);
    engine.read(name, held.data());
    for (std::size_t i = 0; i < size; ++i) values[i] = static_cast<double>(number(held[i]));
  };
  if (dtype == DType::f64) engine.read(name, values.data());
  if (dtype == DType::f32) read(float{}, [](float x) { return x; });
  if (dtype == DType::bf16) read(Bf16{}, [](Bf16 x) { return x.value(); });
  if (dtype == DType::u8) read(std::uint8_t{}, [](std::uint8_t code) { return code; });
  return values;
}

// Of parameters, moments, averages and, on demand, gradients; NaN where one has it.
inline double largest_difference(const Engine& a, const Engine& b, bool gradients = true) {
  double largest = 0;
  for (const std::string& name : a.names()) {
    if (!gradients && name.rfind("gradient", 0) == 0) continue;
    const std::vector<double> x = values_of(a, name), y = values_of(b, name);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double difference = std::fabs(x[i] - y[i]);
      if (!(difference <= largest)) largest = difference;
    }
  }
  return largest;
}

}  // namespace fastsae
