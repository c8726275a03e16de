// Moments in few bits on a device: math/moments.h says how they are rounded. A member has every 256th column of a row, so that a
// block of columns with one scale is one column of each member.
#pragma once

#include "backend/sparse.h"
#include "jobs.h"
#include "math/moments.h"

namespace fastsae::cuda {

// How a matrix's moments are kept.
struct WholeMoments {};
struct Bf16Moments {};
struct ByteMoments {};

// Calls f with how the moments of this type are kept.
template <class F>
void with_moments(DType dtype, F&& f) {
  if (dtype == DType::bf16) return f(Bf16Moments{});
  if (dtype == DType::u8) return f(ByteMoments{});
  f(WholeMoments{});
}

// The word of a column, of those that a draw has for it and others.
FS_HD std::uint32_t word_of(const Random4& drawn, std::int64_t col) {
  const std::int64_t place = col % kDrawnColumns / kMomentBlock;
  const std::uint32_t low = place == 0 ? drawn.word[0] : drawn.word[1];
  const std::uint32_t high = place == 2 ? drawn.word[2] : drawn.word[3];
  return place < 2 ? low : high;
}

// One column of bfloat16.
template <class S, class Step>
struct Bf16Column {
  Bf16 *first, *second;

  FS_HD Bf16Column(const MatrixUpdate& how, std::int64_t row, std::int64_t col)
      : first(how.first.as<Bf16>() + row * how.first.stride + col),
        second(Step::moments > 1 ? how.second.as<Bf16>() + row * how.second.stride + col : nullptr) {}
  FS_HD S step(S p, S gradient, const typename Step::template Scalars<S>& scalars, std::uint32_t word) const {
    S m = static_cast<S>(first->value()), v = Step::moments > 1 ? static_cast<S>(second->value()) : S(0);
    const S next = Step::next(p, gradient, m, v, scalars);
    *first = to_bf16<false>(m, word);
    if (Step::moments > 1) *second = to_bf16<true>(v, word);
    return next;
  }
};

// One column of 8 bits.
template <class S, class Step>
struct ByteColumn {
  std::uint8_t *first, *second;
  S *first_scale, *second_scale;

  FS_HD ByteColumn(const MatrixUpdate& how, std::int64_t row, std::int64_t col)
      : first(how.first.as<std::uint8_t>() + row * how.first.stride + col),
        second(Step::moments > 1 ? how.second.as<std::uint8_t>() + row * how.second.stride + col : nullptr),
        first_scale(how.first_scale.as<S>() + row * how.first_scale.stride + col / kMomentBlock),
        second_scale(Step::moments > 1
                         ? how.second_scale.as<S>() + row * how.second_scale.stride + col / kMomentBlock
                         : nullptr) {}
  // The moments that are to be kept.
  FS_HD S step(S p, S gradient, const typename Step::template Scalars<S>& scalars, double& m,
               double& v) const {
    S one = from_byte<false>(*first, *first_scale);
    S two = Step::moments > 1 ? from_byte<true>(*second, *second_scale) : S(0);
    const S next = Step::next(p, gradient, one, two, scalars);
    m = static_cast<double>(one);
    v = static_cast<double>(two);
    return next;
  }
  FS_HD void keep(double m, double v, S largest_m, S largest_v, std::uint32_t word, bool scales) const {
    const S m_scale = moment_scale(largest_m);
    *first = to_byte<false>(static_cast<S>(m), m_scale, word);
    if (scales) *first_scale = m_scale;
    if (Step::moments < 2) return;
    const S v_scale = moment_scale(largest_v);
    *second = to_byte<true>(static_cast<S>(v), v_scale, word);
    if (scales) *second_scale = v_scale;
  }
};

// Of what lies in shared.part: each of 16 groups' largest sizes, which each member then compares.
FS_HD void find_largest(int member, SumShared<2>& shared) {
  using Shape = SumShared<2>;
  if (member >= 2 * Shape::groups) return;
  const double* part = shared.part[member / Shape::groups] + member % Shape::groups * Shape::group;
  double most = 0;
  FS_UNROLL
  for (int i = 0; i < Shape::group; ++i) {
    const double size = part[i] < 0 ? -part[i] : part[i];
    most = size > most ? size : most;
  }
  shared.whole[member / Shape::groups][member % Shape::groups] = most;
}
FS_HD double largest_of(const SumShared<2>& shared, int which) {
  double most = 0;
  FS_UNROLL
  for (int i = 0; i < SumShared<2>::groups; ++i)
    most = shared.whole[which][i] > most ? shared.whole[which][i] : most;
  return most;
}

}  // namespace fastsae::cuda
