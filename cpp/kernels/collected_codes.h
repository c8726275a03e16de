// Codes of tiles with few elements, which were collected: what dense_codes.h does, at their places alone.
#pragma once

#include "kernels/dense_codes.h"

namespace fastsae {

// Elements that were collected, as a pass over [capacity x 1] finds them, and what each adds to its latent's sums.
template <class S>
struct Elements {
  const std::int32_t* starts;  // [rows + 1]
  const std::int32_t* latents;
  std::int64_t rows;
  View<S> sums;  // [count x capacity]
  int first, count;
  FS_HD bool has(std::int64_t element) const { return element < starts[rows]; }
  FS_HD std::int64_t row(std::int64_t element) const {
    std::int64_t low = 0, high = rows;  // it is in [low, high)
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (starts[middle] <= element ? low : high) = middle;
    }
    return low;
  }
  // The loop is over all that there are, so that `sum` can stay in registers.
  template <int size>
  FS_HD void put(std::int64_t element, const S (&sum)[size]) const {
    for (int i = 0; i < size; ++i) {
      if (i >= first && i < first + count) sums(i - first, element) = sum[i];
    }
  }
};

// z stays.
template <class S>
struct ForwardElement : EachElement<S> {
  Thresholded<S> code;
  Elements<S> at;
  FS_HD S operator()(std::int64_t element, std::int64_t, S z, S*) const {
    if (!at.has(element)) return z;
    S sum[ForwardSums::count];
    code.forward(z, at.row(element), at.latents[element], sum);
    at.put(element, sum);
    return z;
  }
};

template <class S>
struct BackwardElement : EachElement<S> {
  Thresholded<S> code;
  Elements<S> at;
  const S* z;
  PenaltySlopes<S> by;
  FS_HD void load() { by.load(); }
  FS_HD S operator()(std::int64_t element, std::int64_t, S slope, S*) const {
    if (!at.has(element)) return slope;
    S sum[BackwardSums::count];
    const S delta = code.backward(z[element], slope, by, at.row(element), at.latents[element], sum);
    at.put(element, sum);
    return delta;
  }
};

// p stays.
template <class S>
struct ForwardGateElement : EachElement<S> {
  GateParameters<S> gate;
  Elements<S> at;
  S *code, *opening;
  FS_HD S operator()(std::int64_t element, std::int64_t, S p, S*) const {
    if (!at.has(element)) return p;
    S sum[ForwardSums::count];
    code[element] = gate.forward(p, opening[element], at.row(element), at.latents[element], sum);
    at.put(element, sum);
    return p;
  }
};

// The slope by the code becomes delta. It has all of the opening's: what is left for the encoder by that is 0.
template <class S>
struct BackwardGateElement : EachElement<S> {
  GateParameters<S> gate;
  Elements<S> at;
  const S* p;
  S* opening_slope;
  PenaltySlopes<S> by;
  FS_HD void load() { by.load(); }
  FS_HD S operator()(std::int64_t element, std::int64_t, S slope, S*) const {
    if (!at.has(element)) return slope;
    S sum[GateSums::count];
    const S delta = gate.backward(p[element], slope, opening_slope[element], by, at.row(element),
                                  at.latents[element], sum);
    opening_slope[element] = S(0);
    at.put(element, sum);
    return delta;
  }
};

}  // namespace fastsae
