// Elements of a tile that is written down become elements of a code: a block counts a row, one block says where rows begin
// and whether they are few enough, and a block for each row puts its elements there, in the order of their columns.
#pragma once

#include <algorithm>

#include "backend/sparse.h"
#include "jobs.h"

namespace fastsae::cuda {

// What collecting works on.
struct CollectWork {
  Collection all;
  std::int32_t* above;  // [rows of the tile]: how many of each kind
  std::int32_t* near;

  explicit CollectWork(const Collection& collection) : all(collection) {}
  std::size_t bytes() const { return 2 * sizeof(std::int32_t) * static_cast<std::size_t>(all.z.rows); }
  void use(void* memory) {
    above = static_cast<std::int32_t*>(memory);
    near = above + all.z.rows;
  }
  FS_HD bool has_window() const { return all.half_width > 0; }
};

template <class S>
struct CountElements {
  static constexpr int members = 256, columns = 4;
  using State = NoState;
  using Shared = SumShared<2>;
  CollectWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t row) const {
    const Tensor& z = work.all.z;
    const CollectionWindow<S> window(work.all);
    const S* line = z.as<S>() + row * z.stride;
    double found[2];
    add_up(team, shared, found, [&](int member, double (&own)[2]) {
      std::int32_t above = 0, near = 0;
      for (std::int64_t first = member; first < z.cols; first += members * columns) {
        FS_UNROLL
        for (int i = 0; i < columns; ++i) {
          const std::int64_t col = first + i * members;
          if (col >= z.cols) continue;
          const S bar = window.bar(col);
          above += window.is_above(line[col], bar) ? 1 : 0;
          near += window.is_near(line[col], bar) ? 1 : 0;
        }
      }
      own[0] = above;
      own[1] = near;
    });
    team.phase([&](int member, NoState&) {
      if (member != 0) return;
      work.above[row] = static_cast<std::int32_t>(found[0]);
      work.near[row] = static_cast<std::int32_t>(found[1]);
    });
  }
};

// A single block.
struct StartElements {
  static constexpr int members = 1024;
  using State = NoState;
  struct Shared {
    ScanShared<members> scan;
  };
  CollectWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t) const {
    const Collection& all = work.all;
    const bool fits = total(team, shared, work.above) <= all.most_above &&
                      (!work.has_window() || total(team, shared, work.near) <= all.most_near);
    place(team, shared, all.above, work.above, fits);
    if (work.has_window()) place(team, shared, all.near, work.near, fits);
    team.phase([&](int member, NoState&) {
      if (member == 0) *all.listed = fits ? 1 : 0;
    });
  }

 private:
  FS_HD std::int32_t of_row(const std::int32_t* counts, std::int64_t row) const {
    return row < work.all.z.rows ? counts[row] : 0;
  }
  template <class Team>
  FS_HD std::int64_t total(Team& team, Shared& shared, const std::int32_t* counts) const {
    return scan(team, shared.scan, [&](int member, NoState&) {
      std::uint32_t sum = 0;
      for (std::int64_t row = member; row < work.all.z.rows; row += members)
        sum += static_cast<std::uint32_t>(counts[row]);
      return sum;
    });
  }
  template <class Team>
  FS_HD void place(Team& team, Shared& shared, const Code& code, const std::int32_t* counts,
                   bool fits) const {
    std::int32_t* starts = code.starts.as<std::int32_t>() + work.all.first;
    std::uint32_t before = 0;
    for (std::int64_t from = 0; from < work.all.z.rows; from += members) {
      const auto own = [&](int member) {
        return static_cast<std::uint32_t>(fits ? of_row(counts, from + member) : 0);
      };
      const std::uint32_t found = scan(team, shared.scan, [&](int member, NoState&) { return own(member); });
      team.phase([&](int member, NoState&) {
        const std::uint32_t begin = work.all.first == 0 ? 0 : static_cast<std::uint32_t>(starts[0]);
        if (from + member < work.all.z.rows)
          starts[from + member + 1] =
              static_cast<std::int32_t>(begin + before + shared.scan.before(member) + own(member));
      });
      before += found;
    }
    team.phase([&](int member, NoState&) {
      if (member == 0 && work.all.first == 0) starts[0] = 0;
    });
  }
};

// Both kinds are counted in one number, of 16 bits each.
template <class S>
struct PutElements {
  static constexpr int members = 256, each = 8;  // neighbouring columns of a member
  static_assert(members * each < 1 << 16);
  using State = NoState;
  struct Shared {
    ScanShared<members> scan;
  };
  CollectWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t row) const {
    const Collection& all = work.all;
    std::int64_t above = all.above.begin(all.first + row), near = 0;
    const std::int64_t above_end = all.above.begin(all.first + row + 1);
    std::int64_t near_end = 0;
    if (work.has_window()) {
      near = all.near.begin(all.first + row);
      near_end = all.near.begin(all.first + row + 1);
    }
    const CollectionWindow<S> window(all);
    const S* line = all.z.template as<S>() + row * all.z.stride;
    for (std::int64_t from = 0; above < above_end || near < near_end; from += members * each) {
      const std::uint32_t found = scan(team, shared.scan, [&](int member, NoState&) {
        std::uint32_t own = 0;
        FS_UNROLL
        for (int i = 0; i < each; ++i) {
          const std::int64_t col = from + member * each + i;
          if (col >= all.z.cols) continue;
          const S bar = window.bar(col);
          own += window.is_above(line[col], bar) ? 1u : 0u;
          own += window.is_near(line[col], bar) ? 1u << 16 : 0u;
        }
        return own;
      });
      team.phase([&](int member, NoState&) {
        if (shared.scan.part[member] == 0) return;
        const std::uint32_t before = shared.scan.before(member);
        std::int64_t to_above = above + (before & 0xffff), to_near = near + (before >> 16);
        for (int i = 0; i < each; ++i) {
          const std::int64_t col = from + member * each + i;
          if (col >= all.z.cols) return;
          const S bar = window.bar(col);
          if (window.is_above(line[col], bar)) put(all.above, to_above++, col, line[col]);
          if (work.has_window() && window.is_near(line[col], bar)) put(all.near, to_near++, col, line[col]);
        }
      });
      above += found & 0xffff;
      near += work.has_window() ? found >> 16 : 0;
    }
  }

 private:
  FS_HD static void put(const Code& code, std::int64_t at, std::int64_t col, S z) {
    code.latents.as<std::int32_t>()[at] = static_cast<std::int32_t>(col);
    code.values.as<S>()[at] = z;
  }
};

template <class Launch>
void collect_elements(const Launch& launch, const CollectWork& work) {
  with_scalar(work.all.z.dtype, [&](auto s) {
    using S = decltype(s);
    launch(CountElements<S>{work}, work.all.z.rows);
    launch(StartElements{work}, 1);
    launch(PutElements<S>{work}, work.all.z.rows);
  });
}

// Adds a code's values to sums by latent. A block adds up a chunk of rows one after the other; within a row no latent comes
// twice, so that its members never meet.
struct LatentSums {
  Code code;
  Tensor sums;
  int chunks;
  double* parts;  // [chunks x latents]

  LatentSums(const Code& of, const Tensor& into) : code(of), sums(into) {
    constexpr std::int64_t fewest_rows = 8, most_chunks = 256, most_parts = std::int64_t{1} << 22;
    chunks = static_cast<int>(
        std::clamp<std::int64_t>(std::min(code.rows / fewest_rows, most_parts / latents()), 1, most_chunks));
  }
  FS_HD std::int64_t latents() const { return sums.cols; }
  std::size_t bytes() const { return sizeof(double) * static_cast<std::size_t>(chunks * latents()); }
  void use(void* memory) { parts = static_cast<double*>(memory); }
};

template <class S>
struct SumChunk {
  static constexpr int members = 128;
  using State = NoState;
  struct Shared {};
  LatentSums all;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t chunk) const {
    double* part = all.parts + chunk * all.latents();
    team.phase([&](int member, NoState&) {
      for (std::int64_t i = member; i < all.latents(); i += members) part[i] = 0;
    });
    const std::int64_t end = all.code.rows * (chunk + 1) / all.chunks;
    for (std::int64_t row = all.code.rows * chunk / all.chunks; row < end; ++row) {
      team.phase([&](int member, NoState&) {
        const std::int64_t stop = all.code.begin(row + 1);
        for (std::int64_t i = all.code.begin(row) + member; i < stop; i += members)
          part[all.code.latents.as<std::int32_t>()[i]] +=
              static_cast<double>(all.code.values.template as<S>()[i]);
      });
    }
  }
};

struct AddChunks {
  static constexpr int members = 256;
  using State = NoState;
  struct Shared {};
  LatentSums all;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t block) const {
    team.phase([&](int member, NoState&) {
      const std::int64_t latent = block * members + member;
      if (latent < all.latents())
        add_parts(latent, all.parts, all.chunks, all.latents(), true, all.sums.as<double>());
    });
  }
};

template <class Launch>
void sum_latents(const Launch& launch, const LatentSums& all) {
  with_scalar(all.code.values.dtype, [&](auto s) { launch(SumChunk<decltype(s)>{all}, all.chunks); });
  launch(AddChunks{all}, blocks_for(all.latents(), AddChunks::members));
}

}  // namespace fastsae::cuda
