// Where a small model and a batch lie in shared memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/small_model.h"
#include "kernels/list.h"

namespace fastsae::cuda {

struct SmallTeam {
  static constexpr int members = 256;
  static constexpr int each = 4;    // outputs of a product per member, in each direction
  static constexpr int lanes = 16;  // sums that one member adds up
};

FS_HD constexpr std::int64_t whole_tiles(std::int64_t count) {
  return (count + SmallTeam::each - 1) / SmallTeam::each;
}

// Four elements more for every second row of four: then rows below each other begin in different banks.
FS_HD constexpr std::int64_t small_stride(std::int64_t cols) {
  return SmallTeam::each * (whole_tiles(cols) | 1);
}

// Where everything is, in bytes from the start of shared memory.
struct SmallLayout {
  struct Place {
    std::int64_t at, rows, cols;
  };
  Place value[4], gradient[4], first[4], second[4];
  Place x, weight, hidden, hidden_delta, output_delta, column;
  Place sum_hidden, sum_output, rho_hat, next_rho_hat;         // doubles
  Place part_hidden, part_output;                              // sums of columns by tile
  Place member_sums, few_sums, scalars, totals, cost, closed;  // doubles
  std::int64_t bytes = 0;

  SmallLayout(const SmallModel& model, std::int64_t rows) {
    const std::int64_t size = static_cast<std::int64_t>(size_of(model.dtype()));
    const auto place = [this](std::int64_t r, std::int64_t c, std::int64_t element) {
      const Place made{bytes, r, c};
      bytes += whole_tiles(r) * SmallTeam::each * small_stride(c) * element;
      return made;
    };
    const auto line = [this](std::int64_t count, std::int64_t element) {
      const Place made{bytes, 1, count};
      bytes += (count * element + 15) / 16 * 16;
      return made;
    };
    const std::int64_t h = model.hidden(), n = model.features(), tiles = whole_tiles(rows);
    for (int i = 0; i < 4; ++i) {
      const Tensor& p = model.parameters[i].value;
      const bool is_bias = i % 2 != 0;
      const auto parameter = [&] { return is_bias ? line(p.cols, size) : place(p.rows, p.cols, size); };
      value[i] = parameter();
      gradient[i] = parameter();
      const int moments = moments_of(model.parameters[i].update);
      first[i] = moments >= 1 ? parameter() : Place{};
      second[i] = moments >= 2 ? parameter() : Place{};
    }
    x = place(rows, n, size);
    hidden = place(rows, h, size);
    hidden_delta = place(rows, h, size);
    output_delta = place(rows, n, size);
    weight = line(rows, size);
    column = line(h, size);
    part_hidden = line(tiles * h, size);
    part_output = line(tiles * n, size);
    sum_hidden = line(h, 8);
    sum_output = line(n, 8);
    rho_hat = line(h, 8);
    next_rho_hat = line(h, 8);
    member_sums = line(kSums * SmallTeam::members, 8);
    few_sums = line(kSums * SmallTeam::lanes, 8);
    scalars = line(2 * sizeof(StepScalars) / 8, 8);
    totals = line(sizeof(StepTotals) / 8, 8);
    cost = line(sizeof(StepCost) / 8, 8);
    closed = line(sizeof(StepLog) / 8, 8);
  }

  static constexpr int kSums = sizeof(StepTotals) / sizeof(double);
  static int moments_of(const Kernel& update) {
    int moments = 0;
    const auto look = [&](auto* type) {
      using K = std::remove_pointer_t<decltype(type)>;
      if (update.index == IndexOf<K, KernelList>::value) moments = K::moments;
    };
    for_each_type(Concat<UpdateKernels<float>, UpdateKernels<double>>{}, look);
    return moments;
  }
};
static_assert(SmallTeam::members == SmallTeam::lanes * SmallTeam::lanes);

// Whether its steps find room in so many bytes of shared memory.
inline bool fits(const SmallModel& model, std::int64_t rows, std::int64_t bytes) {
  constexpr std::int64_t kLongest = 4096;  // before products of these overflow
  return std::max({model.hidden(), model.features(), rows}) <= kLongest &&
         SmallLayout(model, rows).bytes <= bytes;
}

}  // namespace fastsae::cuda
