// Many steps of a small model by one team, with all that they need in shared memory. The formulas are the kernels of
// the general path, pointed at shared memory.
#pragma once

#include <cstddef>

#include "backend/small_model.h"
#include "blocks.h"
#include "small_product.h"
#include "team.h"

namespace fastsae::cuda {

// The team's work, and what it works on.
template <class S>
class SmallSteps {
 public:
  struct State {
    double sums[SmallLayout::kSums];  // of StepTotals, by this member
  };

  FS_HD SmallSteps(const SmallModel& model, const SmallLayout& layout, const SmallBatches& batches,
                   std::byte* memory)
      : model_(model), at_(layout), batches_(batches), memory_(memory) {}

  template <class Team>
  FS_HD void run(Team& team) const {
    team.phase([&](int member, State&) { clear(member); });
    team.each([&](int member, State&) {
      Deal deal{member};
      move_state(deal, Into{});
      fetch_batch(team, deal, 0);
    });
    team.commit();
    team.template arrive<0>();
    for (int step = 0; step < batches_.steps && log().failed == 0; ++step) {
      const StepScalars* scalars = scalars_of(step);
      team.phase([&](int member, State& state) {
        for (double& sum : state.sums) sum = 0;
        forward_hidden(Deal{member}, state);
      });
      team.phase([&](int member, State& state) { forward_output(Deal{member}, state, scalars); });
      team.phase([&](int member, State& state) { backward_output(Deal{member}, state, scalars); });
      team.phase([&](int member, State& state) {
        backward_hidden(Deal{member}, state);
        for (int k = 0; k < SmallLayout::kSums; ++k)
          doubles(at_.member_sums)[k * SmallTeam::members + member] = state.sums[k];
      });
      team.phase([&](int member, State&) {
        Deal deal{member};
        deal(SmallLayout::kSums * SmallTeam::lanes, [&](int i) {
          const int k = i / SmallTeam::lanes, lane = i % SmallTeam::lanes;
          doubles(at_.few_sums)[i] =
              sum_of(doubles(at_.member_sums) + k * SmallTeam::members + lane, SmallTeam::lanes);
        });
        if (step + 1 < batches_.steps) fetch_batch(team, deal, step + 1);
      });
      team.commit();
      team.phase([&](int member, State&) {
        if (member == 0) close(scalars);
      });
      team.each([&](int member, State&) {
        Deal deal{member};
        update(deal, scalars);
      });
      team.template arrive<0>();
    }
    team.phase([&](int member, State&) {
      Deal deal{member};
      move_state(deal, OutOf{});
    });
  }

 private:
  enum Sum { kLoss, kElementPenalty, kKl, kTwiceDecay, kSquaredGradient };  // in the order of StepTotals
  static_assert(offsetof(StepTotals, squared_gradient) == kSquaredGradient * sizeof(double));
  using Place = SmallLayout::Place;

  FS_HD Matrix<S> matrix(const Place& place) const {
    return {reinterpret_cast<S*>(memory_ + place.at), static_cast<int>(place.rows),
            static_cast<int>(place.cols), static_cast<int>(small_stride(place.cols))};
  }
  FS_HD S* numbers(const Place& place) const { return reinterpret_cast<S*>(memory_ + place.at); }
  FS_HD double* doubles(const Place& place) const { return reinterpret_cast<double*>(memory_ + place.at); }
  FS_HD StepLog& log() const { return *reinterpret_cast<StepLog*>(memory_ + at_.closed.at); }
  FS_HD StepCost& cost() const { return *reinterpret_cast<StepCost*>(memory_ + at_.cost.at); }
  FS_HD StepScalars* scalars_of(int step) const {
    return reinterpret_cast<StepScalars*>(memory_ + at_.scalars.at) + step % 2;
  }
  // Members beside each other add up numbers beside each other: no two meet in a bank.
  FS_HD static double sum_of(const double* values, int apart) {
    double sum = 0;
    for (int i = 0; i < SmallTeam::lanes; ++i) sum += values[i * apart];
    return sum;
  }

  FS_HD void clear(int member) const {
    for (std::int64_t i = member; i < at_.bytes / 16; i += SmallTeam::members)
      reinterpret_cast<Four<float>*>(memory_)[i] = {};
  }

  // Between shared and global memory, one way or the other.
  struct Into {
    template <class T>
    FS_HD void operator()(T& shared, const T& global) const {
      shared = global;
    }
  };
  struct OutOf {
    template <class T>
    FS_HD void operator()(const T& shared, T& global) const {
      global = shared;
    }
  };
  template <class Move>
  FS_HD void move_tensor(Deal& deal, const Place& place, View<S> global, const Move& move) const {
    const Matrix<S> shared = matrix(place);
    deal(shared.rows * shared.cols, [&](int i) {
      const int row = i / shared.cols, col = i % shared.cols;
      move(shared(row, col), global(row, col));
    });
  }
  template <class Move>
  FS_HD void move_state(Deal& deal, const Move& move) const {
    const auto view = [](const Tensor& tensor) {
      return View<S>{static_cast<S*>(tensor.data), tensor.stride};
    };
    for (int i = 0; i < 4; ++i) {
      const SmallParameter& p = model_.parameters[i];
      move_tensor(deal, at_.value[i], view(p.value), move);
      move_tensor(deal, at_.gradient[i], view(p.gradient), move);
      with_kernel(UpdateKernels<S>{}, p.update, [&](const auto& kernel) {
        using K = std::remove_cvref_t<decltype(kernel)>;
        if constexpr (K::moments >= 1) move_tensor(deal, at_.first[i], kernel.m, move);
        if constexpr (K::moments >= 2) move_tensor(deal, at_.second[i], kernel.v, move);
      });
    }
    if (model_.rho_hat.data != nullptr) {
      auto* rho_hat = static_cast<double*>(model_.rho_hat.data);
      deal(static_cast<int>(at_.rho_hat.cols), [&](int i) { move(doubles(at_.rho_hat)[i], rho_hat[i]); });
    }
    deal(1, [&](int) {
      move(log(), *model_.log);
      move(cost(), *model_.cost);
    });
  }

  // Where rows begin at multiples of 16 bytes they are fetched so, else by element.
  template <class Team>
  FS_HD void fetch_batch(Team& team, Deal& deal, int step) const {
    constexpr int kWide = 16 / static_cast<int>(sizeof(S)), kSize = static_cast<int>(sizeof(S));
    const Matrix<S> x = matrix(at_.x);
    const std::int64_t stride = batches_.x.stride;
    const S* rows = static_cast<const S*>(batches_.x.data) + step * x.rows * stride;
    const bool wide = x.cols % kWide == 0 && stride % kWide == 0 &&
                      reinterpret_cast<std::uintptr_t>(batches_.x.data) % 16 == 0;
    const int per_row = wide ? x.cols / kWide : x.cols;
    deal(x.rows * per_row, [&](int i) {
      const int row = i / per_row, col = i % per_row;
      if (wide)
        team.template copy<16>(&x(row, col * kWide), rows + row * stride + col * kWide, 16);
      else
        team.template copy<kSize>(&x(row, col), rows + row * stride + col, kSize);
    });
    const S* weights = static_cast<const S*>(batches_.weight.data) + std::int64_t{step} * x.rows;
    deal(x.rows, [&](int i) { team.template copy<kSize>(numbers(at_.weight) + i, weights + i, kSize); });
    constexpr int kDoubles = sizeof(StepScalars) / sizeof(double);
    const double* scalars = static_cast<const double*>(batches_.scalars.data) + std::int64_t{step} * kDoubles;
    auto* to = reinterpret_cast<double*>(scalars_of(step));
    deal(kDoubles, [&](int i) { team.template copy<8>(to + i, scalars + i, 8); });
  }

  // The kernel on each element of a member's own tile. Its first sums go to the tile's part of their columns, if there
  // is one; returns all of each of its sums.
  struct TileSums {
    double of[2];
  };
  template <class K, class A, class B>
  FS_HD TileSums finish_tile(const K& kernel, const A& a, const B& b, int ta, int tb, const Matrix<S>& out,
                             S* part) const {
    TileSums all{};
    for (int col = b.first(tb); col < b.end(tb); col += b.step()) {
      S sum[2] = {};
      for (int row = a.first(ta); row < a.end(ta); row += a.step()) {
        S summand[2] = {};
        out(row, col) = kernel(row, col, out(row, col), summand);
        for (int k = 0; k < K::sums; ++k) sum[k] += summand[k];
      }
      if (part != nullptr) part[ta * out.cols + col] = sum[0];
      for (int k = 0; k < K::sums; ++k) all.of[k] += static_cast<double>(sum[k]);
    }
    return all;
  }

  // A column's sum over the tiles of the batch.
  FS_HD double column_sum(const S* part, int col, int cols) const {
    const int tiles = static_cast<int>(whole_tiles(at_.x.rows));
    double sum = 0;
    for (int tile = 0; tile < tiles; ++tile) sum += static_cast<double>(part[tile * cols + col]);
    return sum;
  }

  FS_HD void forward_hidden(Deal deal, State& state) const {
    const SmallFactor<S, false> x{matrix(at_.x)}, w1{matrix(at_.value[0])};
    const Matrix<S> hidden = matrix(at_.hidden);
    small_product(deal, x, w1, x.of.cols, hidden, [&](int tx, int tw) {
      with_kernel(ActivateKernels<S>{}, model_.activate, [&](auto& kernel) {
        kernel.bias = numbers(at_.value[1]);
        kernel.weight = numbers(at_.weight);
        const TileSums sums = finish_tile(kernel, x, w1, tx, tw, hidden, numbers(at_.part_hidden));
        state.sums[kElementPenalty] += sums.of[1];
      });
    });
  }

  FS_HD void forward_output(Deal deal, State& state, const StepScalars* scalars) const {
    const SmallFactor<S, false> hidden{matrix(at_.hidden)}, w2{matrix(at_.value[2])};
    const Matrix<S> delta = matrix(at_.output_delta);
    small_product(deal, hidden, w2, hidden.of.cols, delta, [&](int th, int tw) {
      with_kernel(OutputDeltaKernels<S>{}, model_.output_delta, [&](auto& kernel) {
        kernel.bias = numbers(at_.value[3]);
        kernel.weight = numbers(at_.weight);
        kernel.target = matrix(at_.x).view();
        kernel.step = scalars;
        kernel.load();
        const TileSums sums = finish_tile(kernel, hidden, w2, th, tw, delta, numbers(at_.part_output));
        state.sums[kLoss] += sums.of[1];
      });
    });
    if (model_.kl_beta == 0) return;
    deal(hidden.of.cols, [&](int col) {
      doubles(at_.sum_hidden)[col] = column_sum(numbers(at_.part_hidden), col, hidden.of.cols);
      with_kernel(KlColumnKernels<S>{}, model_.kl_column, [&](auto& kernel) {
        kernel.sum_a = doubles(at_.sum_hidden);
        kernel.rho_hat = doubles(at_.rho_hat);
        kernel.next_rho_hat = doubles(at_.next_rho_hat);
        kernel.step = scalars;
        S kl;
        numbers(at_.column)[col] = kernel(0, col, S(0), &kl);
        state.sums[kKl] += static_cast<double>(kl);
      });
    });
  }

  FS_HD void backward_output(Deal deal, State& state, const StepScalars* scalars) const {
    const Matrix<S> hidden = matrix(at_.hidden), output_delta = matrix(at_.output_delta);
    const Matrix<S> hidden_delta = matrix(at_.hidden_delta);
    weight_gradient(deal, state, 1, output_delta, hidden);
    const SmallFactor<S, false> delta{output_delta};
    const SmallFactor<S, true> w2{matrix(at_.value[2])};
    small_product(deal, delta, w2, output_delta.cols, hidden_delta, [&](int td, int tw) {
      with_kernel(HiddenDeltaKernels<S>{}, model_.hidden_delta, [&](auto& kernel) {
        kernel.activation = hidden.view();
        kernel.weight = numbers(at_.weight);
        kernel.column = numbers(at_.column);
        kernel.step = scalars;
        kernel.load();
        finish_tile(kernel, delta, w2, td, tw, hidden_delta, numbers(at_.part_hidden));
      });
    });
    bias_gradient(deal, state, 1, at_.part_output, at_.sum_output);
  }

  FS_HD void backward_hidden(Deal deal, State& state) const {
    weight_gradient(deal, state, 0, matrix(at_.hidden_delta), matrix(at_.x));
    bias_gradient(deal, state, 0, at_.part_hidden, at_.sum_hidden);
  }

  FS_HD void weight_gradient(Deal& deal, State& state, int layer, const Matrix<S>& delta,
                             const Matrix<S>& in) const {
    const SmallFactor<S, true> a{delta}, b{in};
    const Matrix<S> gradient = matrix(at_.gradient[2 * layer]);
    small_product(deal, a, b, delta.rows, gradient, [&](int ta, int tb) {
      with_kernel(WeightGradientKernels<S>{}, model_.decayed[layer], [&](auto& kernel) {
        kernel.weight = matrix(at_.value[2 * layer]).view();
        const TileSums sums = finish_tile(kernel, a, b, ta, tb, gradient, nullptr);
        state.sums[kSquaredGradient] += sums.of[0];
        state.sums[kTwiceDecay] += sums.of[1];
      });
    });
  }

  FS_HD void bias_gradient(Deal& deal, State& state, int layer, const Place& part, const Place& into) const {
    const int cols = static_cast<int>(into.cols);
    deal(cols, [&](int col) {
      doubles(into)[col] = column_sum(numbers(part), col, cols);
      S square;
      numbers(at_.gradient[2 * layer + 1])[col] = BiasGradient<S>{doubles(into)}(0, col, S(0), &square);
      state.sums[kSquaredGradient] += static_cast<double>(square);
    });
  }

  FS_HD void close(const StepScalars* scalars) const {
    double* totals = doubles(at_.totals);
    for (int k = 0; k < SmallLayout::kSums; ++k)
      totals[k] = sum_of(doubles(at_.few_sums) + k * SmallTeam::lanes, 1);
    totals[kElementPenalty] *= model_.element_beta;
    totals[kKl] *= model_.kl_beta;
    with_kernel(TypeList<CloseStep>{}, model_.close, [&](auto& kernel) {
      kernel.totals = reinterpret_cast<const StepTotals*>(totals);
      kernel.step = scalars;
      kernel.cost = &cost();
      kernel.log = &log();
      kernel(0, 0, 0.0, nullptr);
    });
  }

  FS_HD void update(Deal& deal, const StepScalars* scalars) const {
    for (int i = 0; i < 4; ++i) {
      const Matrix<S> p = matrix(at_.value[i]);
      with_kernel(UpdateKernels<S>{}, model_.parameters[i].update, [&](auto& kernel) {
        using K = std::remove_cvref_t<decltype(kernel)>;
        kernel.gradient = matrix(at_.gradient[i]).view();
        if constexpr (K::moments >= 1) kernel.m = {numbers(at_.first[i]), p.stride};
        if constexpr (K::moments >= 2) kernel.v = {numbers(at_.second[i]), p.stride};
        kernel.step = scalars;
        kernel.log = &log();
        fetch(kernel);
        if (kernel.idle()) return;
        // Where parameter, gradient and moments are 0, as in what fills up rows, every optimiser leaves 0.
        deal(p.rows == 1 ? p.cols : p.rows * p.stride,
             [&](int k) { p.data[k] = kernel(0, k, p.data[k], nullptr); });
      });
    }
    if (model_.rho_hat.data == nullptr) return;
    const KeepRhoHat keep{doubles(at_.next_rho_hat), &log()};
    if (keep.idle()) return;
    deal(static_cast<int>(at_.rho_hat.cols),
         [&](int i) { doubles(at_.rho_hat)[i] = keep(0, i, 0.0, nullptr); });
  }

  const SmallModel& model_;
  const SmallLayout& at_;
  const SmallBatches& batches_;
  std::byte* memory_;
};

}  // namespace fastsae::cuda
