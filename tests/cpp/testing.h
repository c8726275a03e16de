// What the native tests share: failures are counted, numbers are the same on every machine, engines are compared.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "engine/engine.h"

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

inline std::vector<double> values_of(const Engine& engine, const std::string& name) {
  const auto size = static_cast<std::size_t>(engine.tensor(name).size());
  std::vector<double> values(size);
  if (engine.tensor(name).dtype == DType::f64) {
    engine.read(name, values.data());
  } else {
    std::vector<float> floats(size);
    engine.read(name, floats.data());
    values.assign(floats.begin(), floats.end());
  }
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
