// A job says what one block of a grid does, and what its members share. Whoever launches it calls
// job(team, shared, block) for each block: a kernel, or one thread that plays them all.
//
//   static constexpr int members
//   struct Shared              not initialised
//   operator()(Team&, Shared&, std::int64_t block) const
//
// Sums are made in a fixed order, by integers alone where any block may add.
#pragma once

#include <cstdint>

#include "blocks.h"

// Before a loop with long formulas in double, which would spill if they were computed side by side.
#if defined(__CUDA_ARCH__)
#define FS_NO_UNROLL _Pragma("unroll 1")
#else
#define FS_NO_UNROLL
#endif

namespace fastsae::cuda {

FS_HD std::int64_t blocks_for(std::int64_t items, std::int64_t per_block) {
  return (items + per_block - 1) / per_block;
}

// What a block of members adds up: 16 groups' sums, which each then adds up for itself.
template <int count>
struct SumShared {
  static constexpr int members = 256, groups = 16, group = members / groups;
  double part[count][members];
  double whole[count][groups];
};

// of(member, sums) fills in `count` sums. All members get them.
template <int count, class Team, class Of>
FS_HD void add_up(Team& team, SumShared<count>& shared, double (&sums)[count], const Of& of) {
  using Shape = SumShared<count>;
  team.phase([&](int member, NoState&) {
    double own[count] = {};
    of(member, own);
    FS_UNROLL
    for (int i = 0; i < count; ++i) shared.part[i][member] = own[i];
  });
  team.phase([&](int member, NoState&) {
    if (member >= count * Shape::groups) return;
    const double* part = shared.part[member / Shape::groups] + member % Shape::groups * Shape::group;
    double sum = 0;
    FS_UNROLL
    for (int i = 0; i < Shape::group; ++i) sum += part[i];
    shared.whole[member / Shape::groups][member % Shape::groups] = sum;
  });
  FS_UNROLL
  for (int i = 0; i < count; ++i) {
    sums[i] = 0;
    FS_UNROLL
    for (int j = 0; j < Shape::groups; ++j) sums[i] += shared.whole[i][j];
  }
}

// How many there are before a member's own, where each has some.
template <int count>
struct ScanShared {
  static constexpr int members = count, group = 16, groups = members / group;
  std::uint32_t part[members];
  std::uint32_t whole[groups];

  // In the phase after scan().
  FS_HD std::uint32_t before(int member) const {
    std::uint32_t sum = 0;
    for (int i = 0; i < member / group; ++i) sum += whole[i];
    for (int i = member / group * group; i < member; ++i) sum += part[i];
    return sum;
  }
};

// of(member, state) is what a member has; returns what all have.
template <class Team, int count, class Of>
FS_HD std::uint32_t scan(Team& team, ScanShared<count>& shared, const Of& of) {
  using Shape = ScanShared<count>;
  team.phase([&](int member, auto& state) { shared.part[member] = of(member, state); });
  team.phase([&](int member, auto&) {
    if (member >= Shape::groups) return;
    std::uint32_t sum = 0;
    FS_UNROLL
    for (int i = 0; i < Shape::group; ++i) sum += shared.part[member * Shape::group + i];
    shared.whole[member] = sum;
  });
  std::uint32_t all = 0;
  for (int i = 0; i < Shape::groups; ++i) all += shared.whole[i];
  return all;
}

}  // namespace fastsae::cuda
