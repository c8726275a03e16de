// Standard normal numbers from random bits, two from two words (Box and Muller 1958). Integers and uniforms are equal
// on all devices; float32 uses our own elementary functions and so gives the same bits too.
#pragma once

#include "math/elementary.h"

namespace fastsae {

// In (0, 1): the middle of the word's interval.
template <class S>
FS_HD S uniform(std::uint32_t word) {
  return (static_cast<S>(word) + S(0.5)) * S(0x1p-32);
}

// sqrt(-2 log u), where u is near 1 from 1 - u, which keeps its digits.
template <class S>
FS_HD S normal_radius(std::uint32_t word) {
  const S log_u = word < 0x80000000u ? natural_log(uniform<S>(word)) : log1p_of(-uniform<S>(~word));
  return square_root(S(-2) * log_u);
}

template <class S>
struct SinCos {
  S sine, cosine;
};

// sin and cos of t pi/2 for t in [-1/2, 1/2]: Taylor series, whose first left-out term is below half an ULP.
FS_HD SinCos<float> sincos_quarter(float t) {
  const float x = t * 1.57079632679489662f, y = x * x;
  const float sine =
      x + x * y * (-1.66666667e-1f + y * (8.33333333e-3f + y * (-1.98412698e-4f + y * 2.75573192e-6f)));
  const float cosine =
      1.0f +
      y * (-0.5f + y * (4.16666667e-2f + y * (-1.38888889e-3f + y * (2.48015873e-5f - y * 2.75573192e-7f))));
  return {sine, cosine};
}
// CUDA's own take any angle, and for that a kernel's stack.
FS_HD SinCos<double> sincos_quarter(double t) {
  const double x = t * 1.5707963267948966, y = x * x;
  double sine = 1 / 355687428096000.0, cosine = 1 / 20922789888000.0;  // 1/17!, 1/16!
  sine = -1 / 1307674368000.0 + y * sine;
  cosine = -1 / 87178291200.0 + y * cosine;
  sine = 1 / 6227020800.0 + y * sine;
  cosine = 1 / 479001600.0 + y * cosine;
  sine = -1 / 39916800.0 + y * sine;
  cosine = -1 / 3628800.0 + y * cosine;
  sine = 1 / 362880.0 + y * sine;
  cosine = 1 / 40320.0 + y * cosine;
  sine = -1 / 5040.0 + y * sine;
  cosine = -1 / 720.0 + y * cosine;
  sine = 1 / 120.0 + y * sine;
  cosine = 1 / 24.0 + y * cosine;
  sine = -1 / 6.0 + y * sine;
  cosine = -0.5 + y * cosine;
  return {x + x * y * sine, 1 + y * cosine};
}

// Of 2 pi times the word's uniform, reduced in integers.
template <class S>
FS_HD SinCos<S> sincos_turn(std::uint32_t word) {
  const std::uint32_t quarter = (word + 0x20000000u) >> 30;
  const auto rest = static_cast<std::int32_t>(word - (quarter << 30));
  const SinCos<S> at = sincos_quarter((static_cast<S>(rest) + S(0.5)) * S(0x1p-30));
  const S sine = quarter & 1u ? at.cosine : at.sine, cosine = quarter & 1u ? at.sine : at.cosine;
  return {quarter & 2u ? -sine : sine, (quarter + 1u) & 2u ? -cosine : cosine};
}

template <class S>
struct TwoNormals {
  S first, second;
};

template <class S>
FS_HD TwoNormals<S> two_normals(std::uint32_t word0, std::uint32_t word1) {
  const S radius = normal_radius<S>(word0);
  const SinCos<S> turn = sincos_turn<S>(word1);
  return {radius * turn.cosine, radius * turn.sine};
}

}  // namespace fastsae
