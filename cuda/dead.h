// Selection among the latents that have not fired for long. How many they are only the device knows: blocks for all of
// them are launched, and those that have nothing to do end at once.
#pragma once

#include "kernels/selection.h"
#include "ranks.h"
#include "tensor_blocks.h"

namespace fastsae::cuda {

// What selecting among the dead works on.
struct DeadWork {
  DeadSelection all;
  std::int64_t tile_rows;
  std::int32_t* listed;  // [latents]: which are dead, in their order
  std::int32_t* counts;  // [blocks of latents]: how many of them are
  void* scores;          // [tile_rows x latents], of which the first columns are used

  static constexpr int kLatents = 256;  // of a block

  explicit DeadWork(const DeadSelection& selection) : all(selection) {
    constexpr std::int64_t most_bytes = std::int64_t{64} << 20, fewest_rows = 64;
    const std::int64_t row_bytes = latents() * static_cast<std::int64_t>(size_of(all.x.dtype));
    tile_rows =
        std::min(all.x.rows, std::max(fewest_rows, most_bytes / row_bytes / fewest_rows * fewest_rows));
  }
  FS_HD std::int64_t latents() const { return all.since.cols; }
  std::int64_t blocks() const { return blocks_for(latents(), kLatents); }
  std::size_t score_bytes() const {
    return static_cast<std::size_t>(tile_rows * latents()) * size_of(all.x.dtype);
  }
  std::size_t bytes() const {
    return score_bytes() + sizeof(std::int32_t) * static_cast<std::size_t>(latents() + blocks());
  }
  void use(void* memory) {
    scores = memory;
    listed = reinterpret_cast<std::int32_t*>(static_cast<std::byte*>(memory) + score_bytes());
    counts = listed + latents();
  }
  FS_HD bool is_dead(std::int64_t latent) const {
    return latent < latents() && all.since.as<double>()[latent] > all.limit;
  }
  FS_HD std::int64_t count() const { return static_cast<std::int64_t>(*all.dead); }
  FS_HD std::int64_t k() const { return count() < all.k ? count() : all.k; }

  // Tiles of scores, as large for every kind of product. Blocks take several, so that few of them find nothing to do.
  static constexpr int kTile = ProductShape::tile;
  FS_HD std::int64_t score_blocks(std::int64_t rows) const {
    const std::int64_t all = blocks_for(rows, kTile) * blocks_for(latents(), kTile);
    return all < 1024 ? all : 1024;
  }
  // run(tile) for each of a block's.
  template <class Run>
  FS_HD void each_tile(std::int64_t block, std::int64_t rows, const Run& run) const {
    const std::int64_t down = blocks_for(rows, kTile), tiles = down * blocks_for(count(), kTile);
    for (std::int64_t at = block; at < tiles; at += score_blocks(rows))
      run(Tile{at % down * kTile, at / down * kTile, rows, count()});
  }
  template <class S>
  FS_HD Strided<S> inputs(std::int64_t first) const {
    return {all.x.as<S>() + first * all.x.stride, all.x.stride, 1};
  }
  template <class S>
  FS_HD ListedRows<S> dead_weights() const {
    return {all.weight.as<S>(), all.weight.stride, listed};
  }
  template <class S>
  FS_HD Out<S> out() const {
    return Out<S>(View<S>{static_cast<S*>(scores), latents()}, nullptr);
  }
};

struct DeadShared {
  ScanShared<DeadWork::kLatents> scan;
};

struct CountDead {
  static constexpr int members = DeadWork::kLatents;
  using State = NoState;
  using Shared = DeadShared;
  DeadWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t block) const {
    const std::uint32_t found = scan(team, shared.scan, [&](int member, NoState&) {
      return work.is_dead(block * members + member) ? 1u : 0u;
    });
    team.phase([&](int member, NoState&) {
      if (member == 0) work.counts[block] = static_cast<std::int32_t>(found);
    });
  }
};

struct ListDead {
  static constexpr int members = DeadWork::kLatents;
  using State = NoState;
  using Shared = DeadShared;
  DeadWork work;
  std::int64_t blocks;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t block) const {
    const std::uint32_t before = scan(team, shared.scan, [&](int member, NoState&) {
      std::uint32_t sum = 0;
      for (std::int64_t i = member; i < block; i += members)
        sum += static_cast<std::uint32_t>(work.counts[i]);
      return sum;
    });
    const std::uint32_t found = scan(team, shared.scan, [&](int member, NoState&) {
      return work.is_dead(block * members + member) ? 1u : 0u;
    });
    team.phase([&](int member, NoState&) {
      const std::int64_t latent = block * members + member;
      if (work.is_dead(latent))
        work.listed[before + shared.scan.before(member)] = static_cast<std::int32_t>(latent);
      if (member == 0 && block + 1 == blocks) *work.all.dead = static_cast<double>(before + found);
    });
  }
};

// Where each row begins.
struct StartDead {
  static constexpr int members = 256;
  using State = NoState;
  struct Shared {};
  DeadWork work;

  template <class Team>
  FS_HD void operator()(Team& team, Shared&, std::int64_t block) const {
    team.phase([&](int member, NoState&) {
      const std::int64_t row = block * members + member;
      if (row <= work.all.x.rows)
        work.all.code.starts.as<std::int32_t>()[row] = static_cast<std::int32_t>(row * work.k());
    });
  }
};

// (z + bias) scale of the listed latents.
template <class S>
struct DeadScore {
  using Scalar = S;
  static constexpr bool epilogue = true;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  const std::int32_t* listed;
  const S* bias;
  const S* scale;  // or null
  FS_HD explicit DeadScore(const DeadWork& work)
      : listed(work.listed), bias(work.all.bias.as<S>()), scale(work.all.scale.as<S>()) {}
  FS_HD S operator()(std::int64_t, std::int64_t col, S z, S*) const {
    const std::int32_t latent = listed[col];
    z += bias[latent];
    return scale == nullptr ? z : z * scale[latent];
  }
};

// A tile of the product of rows `first` and on with the dead latents' weights.
template <class S>
struct ScoreDead {
  static constexpr int members = ProductShape::members;
  using State = ProductState<S>;
  using Shared = ProductShared<DeadScore<S>>;
  DeadWork work;
  std::int64_t first, rows;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t block) const {
    work.each_tile(block, rows, [&](const Tile& tile) {
      team.each([](int, State& state) { state = {}; });
      product_block(team, DeadScore<S>(work), work.inputs<S>(first), work.dead_weights<S>(), work.all.x.cols,
                    false, work.out<S>(), tile, shared, static_cast<double*>(nullptr));
    });
  }
};

// The same by tensor cores.
template <class Cores>
struct ScoreDeadByCores {
  using Shape = LargeTile;
  static_assert(Shape::tile == DeadWork::kTile);
  static constexpr int members = Shape::members;
  using State = TensorState<Shape>;
  using Shared = TensorShared<Shape>;
  DeadWork work;
  std::int64_t first, rows;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t block) const {
    work.each_tile(block, rows, [&](const Tile& tile) {
      team.each([](int, State& state) { state = {}; });
      sum_tile<Cores, Shape>(team, work.inputs<float>(first), work.dead_weights<float>(), work.all.x.cols,
                             tile, shared);
      finish_tile<DeadScore<float>, Shape>(team, DeadScore<float>(work), false, work.out<float>(), tile,
                                           shared, nullptr);
    });
  }
};

// The k largest of a row of scores, in the order of their columns.
template <class S>
struct SelectDead {
  static constexpr int members = 256, each = 4;  // columns of a member at once
  using Key = decltype(selection_key(S()));
  using State = NoState;
  struct Shared {
    RankShared<members> ranks;
    ScanShared<members> scan;
  };
  DeadWork work;
  std::int64_t first;

  template <class Team>
  FS_HD void operator()(Team& team, Shared& shared, std::int64_t row) const {
    const std::int64_t count = work.count(), k = work.k();
    if (k == 0) return;
    const S* scores = static_cast<const S*>(work.scores) + row * work.latents();
    const auto last =
        ranked_key<Key>(team, shared.ranks, static_cast<std::uint32_t>(k), [&](int member, const auto& see) {
          for (std::int64_t col = member; col < count; col += members) see(selection_key(scores[col]));
        });
    std::uint32_t lowest = 0;  // of ~column, with that key
    if (last.taken < last.equal) {
      lowest = ranked_key<std::uint32_t>(team, shared.ranks, last.taken, [&](int member, const auto& see) {
                 for (std::int64_t col = member; col < count; col += members)
                   if (selection_key(scores[col]) == last.key) see(~static_cast<std::uint32_t>(col));
               }).key;
    }
    const auto passes = [&](std::int64_t col) {
      if (col >= count) return false;
      const Key key = selection_key(scores[col]);
      return key != last.key ? key > last.key : ~static_cast<std::uint32_t>(col) >= lowest;
    };
    std::int64_t kept = (first + row) * k;
    for (std::int64_t from = 0; from < count; from += members * each) {
      const std::uint32_t found = scan(team, shared.scan, [&](int member, NoState&) {
        std::uint32_t own = 0;
        for (int i = 0; i < each; ++i) own += passes(from + member * each + i) ? 1 : 0;
        return own;
      });
      team.phase([&](int member, NoState&) {
        if (shared.scan.part[member] == 0) return;
        std::int64_t to = kept + shared.scan.before(member);
        for (int i = 0; i < each; ++i) {
          const std::int64_t col = from + member * each + i;
          if (!passes(col)) continue;
          work.all.code.values.template as<S>()[to] = selection_value(selection_key(scores[col]));
          work.all.code.latents.template as<std::int32_t>()[to++] = work.listed[col];
        }
      });
      kept += found;
    }
  }
};

// score(s, first, rows) launches a tile's product in the type of s.
template <class Launch, class Score>
void select_among_dead(const Launch& launch, const DeadWork& work, const Score& score) {
  launch(CountDead{work}, work.blocks());
  launch(ListDead{work, work.blocks()}, work.blocks());
  launch(StartDead{work}, blocks_for(work.all.x.rows + 1, StartDead::members));
  with_scalar(work.all.x.dtype, [&](auto s) {
    using S = decltype(s);
    for (std::int64_t first = 0; first < work.all.x.rows; first += work.tile_rows) {
      const std::int64_t rows = std::min(work.tile_rows, work.all.x.rows - first);
      score(s, first, rows);
      launch(SelectDead<S>{work, first}, rows);
    }
  });
}

template <class Launch>
void select_among_dead(const Launch& launch, const DeadWork& work) {
  select_among_dead(launch, work, [&](auto s, std::int64_t first, std::int64_t rows) {
    launch(ScoreDead<decltype(s)>{work, first, rows}, work.score_blocks(rows));
  });
}

}  // namespace fastsae::cuda
