// The scores of an encoder, x weight', in tiles that are looked at while they are in cache and then forgotten.
#pragma once

#include <cstdint>
#include <functional>

#include "backend/backend.h"
#include "cpu/partition.h"
#include "cpu/pool.h"
#include "cpu/provider.h"
#include "cpu/scratch.h"

namespace fastsae::cpu {

// Runs task(0 .. count-1) on many threads, and polls.
using Parallel = std::function<void(std::int64_t count, const Task& task)>;

inline constexpr std::int64_t kMostTileCols = 512;

template <class S>
struct ScoreTile {
  std::int64_t task, lane;  // who made it
  Range rows, cols;
  const S* scores;
  std::int64_t stride;
};

// Who makes them.
template <class S>
Provider score_provider(const Tensor& x, const Tensor& weight, Precision precision);

// Tasks share the rows and, where these are few, the columns, in lanes. What is packed of the weights is packed once, for
// all of them. The tiles of a task come in the order of their columns, and those of a row in one lane from one task.
template <class S>
class ScoreTiles {
 public:
  using Visit = std::function<void(const ScoreTile<S>&)>;

  // So many rows are taken at once: enough to pay for packing the weights, few enough to stay in the last cache.
  static std::int64_t most_rows(std::int64_t width);

  ScoreTiles(const Tensor& x, const Tensor& weight, Provider provider, std::int64_t most_tasks,
             std::int64_t most_lanes);

  std::int64_t tasks() const { return shares_ * lanes_; }
  std::int64_t lanes() const { return lanes_; }
  // `between` runs alone, now and then. A large `visit` is given as std::cref, which allocates nothing.
  void run(Scratch& scratch, const Parallel& parallel, const Visit& visit,
           const std::function<void()>& between = {}) const;

 private:
  template <class Scores>
  void run_by(const Scores& scores, Scratch& scratch, const Parallel& parallel, const Visit& visit,
              const std::function<void()>& between) const;

  const Tensor x_, weight_;
  const Provider provider_;
  const Cut rows_;  // the BLAS: what it multiplies at once, on which its bits depend
  std::int64_t shares_, lanes_;
};

}  // namespace fastsae::cpu
