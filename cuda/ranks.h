// Finding the element of a given rank among many keys, digit by digit from the highest, by one block.
#pragma once

#include "jobs.h"

namespace fastsae::cuda {

// Members count the digits of their own keys in places of their own.
template <int count>
struct RankShared {
  static constexpr int members = count, bits = 4, bins = 1 << bits, groups = 16;
  std::uint32_t part[bins][members];
  std::uint32_t whole[bins][groups];
  std::uint32_t all[bins];
};

template <class Key>
struct RankedKey {
  Key key;
  std::uint32_t taken;  // of those with this key
  std::uint32_t equal;  // how many have it
};

// The rank-th greatest key (from 1). each(member, see) calls see(key) for each of a member's keys.
template <class Key, class Team, int count, class Each>
FS_HD RankedKey<Key> ranked_key(Team& team, RankShared<count>& shared, std::uint32_t rank, const Each& each) {
  using Shape = RankShared<count>;
  RankedKey<Key> found{0, rank, 0};
  Key known = 0;  // bits
  for (int shift = 8 * static_cast<int>(sizeof(Key)) - Shape::bits; shift >= 0; shift -= Shape::bits) {
    team.phase([&](int member, auto&) {
      for (int bin = 0; bin < Shape::bins; ++bin) shared.part[bin][member] = 0;
      each(member, [&](Key key) {
        if (((key ^ found.key) & known) == 0) ++shared.part[(key >> shift) & (Shape::bins - 1)][member];
      });
    });
    team.phase([&](int member, auto&) {
      if (member >= Shape::bins * Shape::groups) return;
      const int bin = member / Shape::groups, group = member % Shape::groups;
      std::uint32_t sum = 0;
      for (int i = group; i < Shape::members; i += Shape::groups) sum += shared.part[bin][i];
      shared.whole[bin][group] = sum;
    });
    team.phase([&](int member, auto&) {
      if (member >= Shape::bins) return;
      std::uint32_t sum = 0;
      FS_UNROLL
      for (int i = 0; i < Shape::groups; ++i) sum += shared.whole[member][i];
      shared.all[member] = sum;
    });
    int bin = Shape::bins - 1;
    for (; bin > 0 && found.taken > shared.all[bin]; --bin) found.taken -= shared.all[bin];
    found.equal = shared.all[bin];
    found.key |= static_cast<Key>(bin) << shift;
    known |= static_cast<Key>(Shape::bins - 1) << shift;
  }
  return found;
}

}  // namespace fastsae::cuda
