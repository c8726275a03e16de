// The elements of codes by latent: a counting sort whose order depends on nothing but the codes. A block counts a chunk of
// rows one after the other; within a row no latent comes twice, so that its members never meet.
#pragma once

#include <algorithm>
#include <span>

#include "backend/sparse.h"
#include "jobs.h"

namespace fastsae::cuda {

// Codes cut in chunks of rows; a task is a chunk of one of them.
struct IndexTasks {
  CodeGradient codes[2];
  LatentIndex index;
  Tensor fired;
  std::int64_t slots, rows, latents;
  int chunks, tasks;
  std::int32_t* counts;  // [tasks x latents]; then where each task's first element of a latent goes
  std::int32_t* sums;    // [blocks x 2]: elements and segments of a block's latents

  static constexpr int kLatents = 256;  // of a block

  IndexTasks(std::span<const CodeGradient> of, std::int64_t slots_of_a_row, const LatentIndex& into,
             const Tensor& fired_rows)
      : index(into),
        fired(fired_rows),
        slots(slots_of_a_row),
        rows(of[0].code.rows),
        latents(into.begins.cols - 1) {
    constexpr std::int64_t fewest_rows = 8, most_chunks = 512, most_counts = std::int64_t{1} << 24;
    const auto parts = static_cast<std::int64_t>(of.size());
    std::copy(of.begin(), of.end(), codes);
    chunks = static_cast<int>(std::clamp<std::int64_t>(
        std::min(rows / fewest_rows, most_counts / (parts * latents)), 1, most_chunks));
    tasks = static_cast<int>(parts) * chunks;
  }
  std::int64_t blocks() const { return blocks_for(latents, kLatents); }
  std::size_t bytes() const {
    return sizeof(std::int32_t) * static_cast<std::size_t>(tasks * latents + 2 * blocks());
  }
  void use(void* memory) {
    counts = static_cast<std::int32_t*>(memory);
    sums = counts + tasks * latents;
  }

  // run(latent, i, row) for the elements of a task that count, row after row.
  template <class S, class Team, class Run>
  FS_HD void each(Team& team, int members, std::int64_t task, const Run& run) const {
    const CodeGradient& part = codes[task / chunks];
    const std::int64_t chunk = task % chunks;
    const std::int64_t end = rows * (chunk + 1) / chunks;
    for (std::int64_t row = rows * chunk / chunks; row < end; ++row) {
      team.phase([&](int member, NoState&) {
        const std::int64_t stop = part.code.begin(row + 1);
        for (std::int64_t i = part.code.begin(row) + member; i < stop; i += members) {
          if (part.code.values.as<S>()[i] == S(0) && !part.keep_zeros) continue;
          run(part.code.latents.as<std::int32_t>()[i], i, row);
        }
      });
    }
  }
};

struct NoShared {};

template <class S>
struct CountLatents {
  static constexpr int members = 128;
  using State = NoState;
  using Shared = NoShared;
  IndexTasks all;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t task) const {
    std::int32_t* counts = all.counts + task * all.latents;
    team.phase([&](int member, NoState&) {
      for (std::int64_t i = member; i < all.latents; i += members) counts[i] = 0;
    });
    all.template each<S>(team, members, task,
                         [&](std::int32_t latent, std::int64_t, std::int64_t) { ++counts[latent]; });
  }
};

// How many elements each latent has, and how many pieces it is cut in.
struct TotalLatents {
  static constexpr int members = IndexTasks::kLatents;
  using State = NoState;
  struct Shared {
    ScanShared<members> scan;
  };
  IndexTasks all;

  FS_HD static std::uint32_t segments(std::int32_t count) {
    constexpr std::int32_t size = LatentIndex::kSegment;
    return count <= size ? 0 : static_cast<std::uint32_t>((count + size - 1) / size);
  }
  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t block) const {
    std::int32_t* begins = all.index.begins.as<std::int32_t>();
    const auto count_of = [&](int member) {
      const std::int64_t latent = block * members + member;
      return latent < all.latents ? begins[latent] : 0;
    };
    team.phase([&](int member, NoState&) {
      const std::int64_t latent = block * members + member;
      const std::int64_t blocks = blocks_for(all.latents, members);
      for (std::int64_t i = latent; i < all.index.segments.rows; i += blocks * members)
        all.index.segments.as<std::int32_t>()[2 * i] = -1;
      if (latent >= all.latents) return;
      std::int32_t total = 0, of_first = 0;
      for (int task = 0; task < all.tasks; ++task) {
        total += all.counts[task * all.latents + latent];
        if (task + 1 == all.chunks) of_first = total;
      }
      begins[latent] = total;
      all.fired.as<double>()[latent] = of_first;
    });
    const std::uint32_t elements = scan(team, shared.scan, [&](int member, NoState&) {
      return static_cast<std::uint32_t>(count_of(member));
    });
    const std::uint32_t pieces =
        scan(team, shared.scan, [&](int member, NoState&) { return segments(count_of(member)); });
    team.phase([&](int member, NoState&) {
      if (member != 0) return;
      all.sums[2 * block] = static_cast<std::int32_t>(elements);
      all.sums[2 * block + 1] = static_cast<std::int32_t>(pieces);
    });
  }
};

// Counts become places.
struct PlaceLatents {
  static constexpr int members = IndexTasks::kLatents;
  struct State {
    std::int32_t count, begin;
  };
  struct Shared {
    ScanShared<members> scan;
  };
  IndexTasks all;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t block) const {
    std::int32_t* begins = all.index.begins.as<std::int32_t>();
    const auto before = [&](int what) {  // this block's latents
      return scan(team, shared.scan, [&](int member, State&) {
        std::uint32_t sum = 0;
        for (std::int64_t i = member; i < block; i += members)
          sum += static_cast<std::uint32_t>(all.sums[2 * i + what]);
        return sum;
      });
    };
    const std::uint32_t first = before(0), first_segment = before(1);
    scan(team, shared.scan, [&](int member, State& state) {
      const std::int64_t latent = block * members + member;
      state.count = latent < all.latents ? begins[latent] : 0;
      return static_cast<std::uint32_t>(state.count);
    });
    team.phase([&](int member, State& state) {
      const std::int64_t latent = block * members + member;
      if (latent >= all.latents) return;
      state.begin = static_cast<std::int32_t>(first + shared.scan.before(member));
      begins[latent] = state.begin;
      std::int32_t place = state.begin;
      for (int task = 0; task < all.tasks; ++task) {
        std::int32_t& own = all.counts[task * all.latents + latent];
        const std::int32_t count = own;
        own = place;
        place += count;
      }
      if (latent + 1 == all.latents) begins[latent + 1] = place;
    });
    scan(team, shared.scan, [&](int, State& state) { return TotalLatents::segments(state.count); });
    team.phase([&](int member, State& state) {
      std::int32_t* to =
          all.index.segments.as<std::int32_t>() + 2 * (first_segment + shared.scan.before(member));
      const auto pieces = static_cast<std::int32_t>(TotalLatents::segments(state.count));
      for (std::int32_t i = 0; i < pieces; ++i) {
        to[2 * i] = static_cast<std::int32_t>(block * members + member);
        to[2 * i + 1] = state.begin + i * static_cast<std::int32_t>(LatentIndex::kSegment);
      }
    });
  }
};

template <class S>
struct PutLatents {
  static constexpr int members = 128;
  using State = NoState;
  using Shared = NoShared;
  IndexTasks all;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t task) const {
    std::int32_t* places = all.counts + task * all.latents;
    const CodeGradient& part = all.codes[task / all.chunks];
    all.template each<S>(team, members, task, [&](std::int32_t latent, std::int64_t i, std::int64_t row) {
      std::int64_t group = 0;
      while (latent >= part.prefixes.ends[group]) ++group;
      const std::int32_t at = places[latent]++;
      all.index.slots.as<std::int32_t>()[at] =
          static_cast<std::int32_t>(row * all.slots + part.first_slot + group);
      all.index.values.as<S>()[at] = part.code.values.as<S>()[i];
      all.index.slopes.as<S>()[at] = part.slopes.as<S>()[i];
    });
  }
};

template <class Launch>
void index_codes(const Launch& launch, const IndexTasks& all) {
  with_scalar(all.index.values.dtype, [&](auto s) {
    using S = decltype(s);
    launch(CountLatents<S>{all}, all.tasks);
    launch(TotalLatents{all}, all.blocks());
    launch(PlaceLatents{all}, all.blocks());
    launch(PutLatents<S>{all}, all.tasks);
  });
}

}  // namespace fastsae::cuda
