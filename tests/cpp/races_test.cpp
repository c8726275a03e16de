// Every block algorithm played by threads: it must give the bits that the serial team gives, and the thread sanitizer
// must find no race in it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "blocks.h"
#include "collect.h"
#include "core/error.h"
#include "dead.h"
#include "decode.h"
#include "emulated_cores.h"
#include "images.h"
#include "kernels/list.h"
#include "latent_index.h"
#include "latents.h"
#include "rows.h"
#include "select.h"
#include "select_batch.h"
#include "tensor_blocks.h"
#include "testing.h"
#include "thread_team.h"

namespace {

using namespace fastsae;
using namespace fastsae::cuda;

// Shared memory as it is found: nothing may be read that was not written.
template <class Shared>
std::unique_ptr<Shared, void (*)(Shared*)> poisoned() {
  void* memory = std::aligned_alloc(64, (sizeof(Shared) + 63) / 64 * 64);
  std::memset(memory, 0xff, sizeof(Shared));
  return {static_cast<Shared*>(memory), [](Shared* shared) { std::free(shared); }};
}

struct None {};

// run(team, shared, to, sums): `to` and `sums` are what it works on.
template <class State, class Shared, class S, class Run>
void same_bits(const std::string& name, int members, const std::vector<S>& before, std::size_t sums,
               const Run& run) {
  std::vector<S> to[2] = {before, before};
  std::vector<double> summed[2] = {std::vector<double>(sums, -1), std::vector<double>(sums, -1)};
  const auto serial_shared = poisoned<Shared>(), shared = poisoned<Shared>();
  SerialTeam<State> serial(members);
  run(serial, *serial_shared, to[0], summed[0]);
  play_by_threads<State>(members, [&](auto& team) { run(team, *shared, to[1], summed[1]); });
  check(std::memcmp(to[0].data(), to[1].data(), before.size() * sizeof(S)) == 0, name + ": elements");
  check(sums == 0 || std::memcmp(summed[0].data(), summed[1].data(), sums * sizeof(double)) == 0,
        name + ": sums");
  check(std::memcmp(to[0].data(), before.data(), before.size() * sizeof(S)) != 0 || sums > 0,
        name + ": something was done");
}

// Numbers in (-1, 1), many of them equal.
template <class S>
std::vector<S> rough_numbers(std::int64_t count, std::uint32_t state) {
  std::vector<S> values(static_cast<std::size_t>(count));
  for (S& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<S>(state >> 22) / 512 - 1;
  }
  return values;
}

template <class S>
void passes() {
  constexpr std::int64_t rows = 70, cols = 40;
  const auto bias = rough_numbers<S>(cols, 1), weight = rough_numbers<S>(rows, 2),
             target = rough_numbers<S>(rows * cols, 3);
  const auto before = rough_numbers<S>(rows * cols, 4);
  const Activate<S, Sigmoid, L1Penalty> activate{bias.data(), weight.data()};
  const auto out = [](std::vector<S>& to) { return Out<S>(View<S>{to.data(), cols}, nullptr); };
  same_bits<NoState, MapShared<Activate<S, Sigmoid, L1Penalty>>>(
      "map", MapShape::members, before, 2 * cols, [&](auto& team, auto& shared, auto& to, auto& sums) {
        map_block(team, activate, out(to), Tile{0, 32, rows, cols}, shared, sums.data());
      });
  using Loss = RowLoss<S, Sigmoid, SquaredError>;
  const Loss loss{bias.data(), {target.data(), cols}};
  same_bits<NoState, RowShared<Loss>>(
      "row sums", RowShape::members, before, rows, [&](auto& team, auto& shared, auto& to, auto& sums) {
        row_block(team, loss, out(to), Tile{64, 0, rows, cols}, shared, sums.data());
      });
  constexpr std::int64_t inner = 40;
  const auto a = rough_numbers<S>(rows * inner, 5), b = rough_numbers<S>(cols * inner, 6);
  same_bits<ProductState<S>, ProductShared<Activate<S, Sigmoid, L1Penalty>>>(
      "product", ProductShape::members, before, 2 * cols,
      [&](auto& team, auto& shared, auto& to, auto& sums) {
        product_block(team, activate, Strided<S>{a.data(), inner, 1}, Strided<S>{b.data(), 1, cols}, inner,
                      true, out(to), Tile{64, 0, rows, cols}, shared, sums.data());
      });
}

template <class Cores, class Shape>
void tensor_products() {
  constexpr std::int64_t rows = 70, cols = 40, inner = 150;
  const auto bias = rough_numbers<float>(cols, 1), weight = rough_numbers<float>(rows, 2);
  const auto a = rough_numbers<float>(rows * inner, 5), b = rough_numbers<float>(cols * inner, 6);
  using K = Activate<float, Sigmoid, L1Penalty>;
  const K activate{bias.data(), weight.data()};
  same_bits<TensorState<Shape>, TensorShared<Shape>>(
      text("tiles of ", Shape::tile, ", depth ", Cores::depth), Shape::members,
      rough_numbers<float>(rows * cols, 4), 2 * cols, [&](auto& team, auto& shared, auto& to, auto& sums) {
        const Tile tile{Shape::tile, 0, rows, cols};
        sum_tile<Cores, Shape>(team, Strided<float>{a.data(), inner, 1}, Strided<float>{b.data(), 1, cols},
                               inner, tile, shared);
        finish_tile<K, Shape>(team, activate, true, Out<float>(View<float>{to.data(), cols}, nullptr), tile,
                              shared, sums.data());
      });
}

// Two in a row with the same shared memory, as one launch adds them.
void totals() {
  const auto values = rough_numbers<double>(3 * 5000, 7);
  same_bits<NoState, TotalShared>(
      "totals", TotalShape::members, std::vector<double>(1, 0.5), 1,
      [&](auto& team, auto& shared, auto& to, auto& sums) {
        total_block(team, View<const double>{values.data(), 5000}, 3, 4999, 0.5, shared, to.data());
        total_block(team, View<const double>{values.data(), 2500}, 6, 2500, 1, shared, to.data());
        total_block(team, View<const double>{values.data(), 1}, 7, 1, 1, shared, sums.data());
      });
}

// Not inlined: gcc 12 sees faults in a row whose first column it knows.
template <class S, class Team>
[[gnu::noinline]] void select_chunk(Team& team, const S* scores, std::int32_t first, std::int32_t cols,
                                    const SelectedRow<S>& best, SelectShared<S>& shared) {
  select_row(team, ScoreRow<S>{scores, first, cols}, best, shared);
}

// Two chunks of a row: many ties, so that the bar is raised by key and by place, then NaN and a few that enter.
template <class S>
void selection(std::int32_t first, std::int32_t cols, std::int32_t k) {
  auto scores = rough_numbers<S>(16384, 8);
  scores[30] = scores[8999] = std::numeric_limits<S>::quiet_NaN();
  for (int i = 1000; i < 5001; ++i) scores[static_cast<std::size_t>(i)] = 1;
  struct alignas(16) Chunk {
    S scores[16384];
  };
  const auto left = std::make_unique<Chunk>(), right = std::make_unique<Chunk>();
  std::memcpy(left->scores, scores.data(), static_cast<std::size_t>(first) * sizeof(S));
  std::memcpy(right->scores, scores.data() + first, static_cast<std::size_t>(cols - first) * sizeof(S));
  same_bits<SelectState<S>, SelectShared<S>>(
      text("selection of ", k, ", ", sizeof(S) * 8, " bits"), SelectShape::members,
      std::vector<S>(static_cast<std::size_t>(k)), static_cast<std::size_t>(k),
      [&](auto& team, auto& shared, auto& to, auto& sums) {
        const View<std::int32_t> indices{reinterpret_cast<std::int32_t*>(sums.data()), k};
        const SelectedRow<S> best{Out<S>(View<S>{to.data(), k}, nullptr), indices, 0, k};
        select_chunk(team, left->scores, 0, first, best, shared);
        select_chunk(team, right->scores, first, cols - first, best, shared);
      });
}

void rows() {
  constexpr std::int64_t count = 13, cols = 150;
  const auto source = rough_numbers<double>(count * cols, 9);
  const std::vector<std::int64_t> order = {5, 3, 12, 0, 1, 1, 7, 6, 2, 10, 9, 4, 8};
  const RowSource from{source.data(), count, cols, cols * 8, DType::f64};
  same_bits<NoState, None>("gather", GatherShape::members, std::vector<float>(count * cols), 0,
                           [&](auto& team, None&, auto& to, auto&) {
                             gather_block(team, OrderedRows<double>(from, order.data()),
                                          Out<float>(View<float>{to.data(), cols}, nullptr),
                                          Tile{8, 0, count, cols});
                           });
  same_bits<NoState, SearchShared>("search", SearchShape::members, std::vector<std::int64_t>(1, -1), 0,
                                   [&](auto& team, auto& shared, auto& to, auto&) {
                                     search_block(team, OrderedRows<double>(from, nullptr), -0.99, 0.99,
                                                  Tile{0, 0, count, cols}, shared, to.data());
                                   });
}

template <class S>
void windows() {
  constexpr std::int64_t images = 3, channels = 5, side = 7, across = 4;
  const Windows over{channels, side, side, 3, 2, 1, across, across};
  const std::int64_t pixels = images * side * side, count = images * over.per_image();
  const auto image = rough_numbers<S>(pixels * channels, 10),
             column = rough_numbers<S>(count * over.size(), 11);
  same_bits<NoState, UnfoldShared>("unfold", WindowShape::members, std::vector<S>(count * over.size(), 2), 0,
                                   [&](auto& team, auto& shared, auto& to, auto&) {
                                     unfold_block(team, over, image.data(),
                                                  Out<S>(View<S>{to.data(), over.size()}, nullptr),
                                                  Tile{5, 0, count, over.size()}, 30, shared);
                                   });
  same_bits<NoState, FoldShared>("fold", WindowShape::members, std::vector<S>(pixels * channels, 2), 0,
                                 [&](auto& team, auto& shared, auto& to, auto&) {
                                   fold_block(team, over, View<const S>{column.data(), over.size()},
                                              Out<S>(View<S>{to.data(), channels}, nullptr),
                                              Tile{9, 0, pixels, channels}, 100, shared);
                                 });
}

// A pass that writes four runs of each row, over few columns: several rows for each 32 members.
template <class S>
void noise() {
  constexpr std::int64_t rows = 70, cols = 18, run = 5;
  const auto clean = rough_numbers<S>(rows * cols, 12);
  std::vector<double> numbers(rows);
  for (std::int64_t i = 0; i < rows; ++i) numbers[static_cast<std::size_t>(i)] = static_cast<double>(i * 3);
  StepScalars step{};
  step.seed = 4, step.epoch = 2;
  same_bits<NoState, MapShared<AddNormals<S, false>>>(
      "noise", MapShape::members, std::vector<S>(rows * cols, 9), 0,
      [&](auto& team, auto& shared, auto& to, auto&) {
        const View<S> noisy{to.data(), cols};
        AddNormals<S, false> add{
            {{clean.data(), cols}, noisy, cols, run, Stream::corruption, numbers.data(), &step},
            0.25,
            nullptr};
        add.load();
        map_block(team, add, Out<S>(noisy, nullptr), Tile{0, 0, rows, run}, shared,
                  static_cast<double*>(nullptr));
      });
}

// Runs the jobs of sparse codes by one thread, or the first blocks of each by one for each member.
struct Played {
  bool by_threads;
  template <class Job>
  void operator()(const Job& job, std::int64_t blocks) const {
    for (std::int64_t block = 0; block < blocks; ++block) {
      const auto shared = poisoned<typename Job::Shared>();
      const Played one{by_threads && block < 3};
      one.template run<typename Job::State>(Job::members, [&](auto& team) { job(team, *shared, block); });
    }
  }
  template <class State, class Run>
  void run(int members, const Run& block) const {
    if (by_threads) return play_by_threads<State>(members, block);
    SerialTeam<State> team(members);
    block(team);
  }
};

// work(play, to) for both; what it leaves in `to` must have the same bits.
template <class S, class Work>
void same_codes(const std::string& name, std::size_t size, const Work& work) {
  std::vector<S> to[2] = {std::vector<S>(size, S(-7)), std::vector<S>(size, S(-7))};
  for (const bool by_threads : {false, true}) work(Played{by_threads}, to[by_threads ? 1 : 0].data());
  check(std::memcmp(to[0].data(), to[1].data(), size * sizeof(S)) == 0, name);
  check(to[0] != std::vector<S>(size, S(-7)), name + ": something was done");
}

template <class S>
void codes() {
  constexpr std::int64_t rows = 6, features = 5, outputs = 40, latents = 300, k = 3, count = rows * k;
  std::vector<std::int32_t> places;
  for (std::int32_t row = 0; row < rows; ++row) {
    for (const std::int32_t latent : {7, 100 + 10 * row, 299}) places.push_back(latent);
  }
  auto values = rough_numbers<S>(count, 1), slopes = rough_numbers<S>(count, 2),
       x = rough_numbers<S>(rows * features, 3), encoder = rough_numbers<S>(latents * features, 4),
       decoder = rough_numbers<S>(latents * outputs, 5), target = rough_numbers<S>(rows * outputs, 6),
       bias = rough_numbers<S>(latents, 7);
  const auto matrix = [](auto& memory, std::int64_t r, std::int64_t c) {
    return Tensor{memory.data(), r, c, c, dtype_of<S>};
  };
  const Tensor inputs = matrix(x, rows, features), weight = matrix(encoder, latents, features);
  const Code code{rows, {}, k, {places.data(), 1, count, count, DType::i32}, matrix(values, 1, count)};
  same_codes<S>("decode", rows * outputs + count, [&](const Played& play, S* to) {
    std::vector<double> losses(rows);
    const double factor = 0.5;
    std::vector<S> ones(rows, S(1));
    Decoding d{};
    d.code = code, d.weight = matrix(decoder, latents, outputs), d.target = matrix(target, rows, outputs);
    d.prefixes.ends[0] = latents, d.prefixes.weights[0] = 1;
    d.row_weight = matrix(ones, 1, rows), d.factor = &factor;
    d.errors = {to, rows, outputs, outputs, dtype_of<S>};
    d.slopes = {to + rows * outputs, 1, count, count, dtype_of<S>};
    d.losses = {losses.data(), 1, rows, rows, DType::f64};
    decode_rows(play, d);
  });
  same_codes<S>("decode, with elements whose slopes alone are wanted", rows * outputs + 2 * count,
                [&](const Played& play, S* to) {
                  std::vector<double> losses(rows);
                  const double factor = 0.5;
                  std::vector<S> ones(rows, S(1));
                  Decoding d{};
                  d.code = d.more = code, d.weight = matrix(decoder, latents, outputs);
                  d.target = matrix(target, rows, outputs);
                  d.prefixes.ends[0] = latents, d.prefixes.weights[0] = 1;
                  d.row_weight = matrix(ones, 1, rows), d.factor = &factor;
                  d.errors = {to, rows, outputs, outputs, dtype_of<S>};
                  d.slopes = {to + rows * outputs, 1, count, count, dtype_of<S>};
                  d.more_slopes = {to + rows * outputs + count, 1, count, count, dtype_of<S>};
                  d.losses = {losses.data(), 1, rows, rows, DType::f64};
                  decode_rows(play, d);
                });
  same_codes<S>("collected", 2 * rows * latents + latents, [&](const Played& play, S* to) {
    auto z = rough_numbers<S>(rows * latents, 8);
    std::vector<std::int32_t> starts(rows + 1), near_starts(rows + 1), found(rows * latents),
        near_found(rows * latents);
    constexpr std::int64_t room = rows * latents;
    const auto code_of = [&](std::vector<std::int32_t>& begins, std::vector<std::int32_t>& which, S* kept) {
      return Code{rows,
                  {begins.data(), 1, rows + 1, rows + 1, DType::i32},
                  0,
                  {which.data(), 1, room, room, DType::i32},
                  {kept, 1, room, room, dtype_of<S>}};
    };
    const Code above = code_of(starts, found, to), near = code_of(near_starts, near_found, to + room);
    double listed = 0;
    std::vector<double> sums(latents);
    for (std::int64_t first = 0; first < rows; first += 4) {
      const Tensor part = matrix(z, rows, latents).slice_rows(first, std::min<std::int64_t>(4, rows - first));
      CollectWork work({part, matrix(bias, 1, latents), 0.2, first, above, near, room, room, &listed});
      std::vector<std::int32_t> memory(work.bytes() / sizeof(std::int32_t));
      work.use(memory.data());
      collect_elements(play, work);
    }
    LatentSums all(near, {sums.data(), 1, latents, latents, DType::f64});
    std::vector<double> parts(all.bytes() / sizeof(double));
    all.use(parts.data());
    sum_latents(play, all);
    for (std::size_t i = 0; i < latents; ++i) to[2 * room + i] = static_cast<S>(sums[i]);
  });
  same_codes<double>("latents", 3 * latents + 2 * count, [&](const Played& play, double* to) {
    std::vector<std::int32_t> begins(latents + 1), slots(count), segments(4);
    std::vector<S> partials(2 * (features + outputs)), sums(latents);
    CodeGradient part{};
    part.code = code, part.slopes = matrix(slopes, 1, count);
    part.prefixes.ends[0] = latents;
    LatentRows all{};
    const auto whole = [](auto& memory, std::int64_t c) {
      return Tensor{memory.data(), 1, c, c, DType::i32};
    };
    all.index = {whole(begins, latents + 1),
                 whole(slots, count),
                 {to + 3 * latents, 1, count, count, dtype_of<S>},
                 {to + 3 * latents + count, 1, count, count, dtype_of<S>},
                 {segments.data(), 2, 2, 2, DType::i32},
                 matrix(partials, 2, features + outputs)};
    all.inputs = inputs, all.errors = matrix(target, rows, outputs);
    all.encoder = weight, all.decoder = matrix(decoder, latents, outputs), all.project = true;
    IndexTasks tasks({&part, 1}, 1, all.index, {to, 1, latents, latents, DType::f64});
    std::vector<std::byte> memory(tasks.bytes());
    tasks.use(memory.data());
    index_codes(play, tasks);
    const auto each = [&](auto s, const auto& job) {
      std::vector<decltype(s)> gradient(features + outputs);
      const auto shared = poisoned<SumShared<2>>();
      play.template run<NoState>(LatentWork<S>::members, [&](auto& team) {
        for (const std::int64_t latent : {7, 8, 299}) job(team, *shared, gradient.data(), latent);
      });
    };
    measure_all(play, each, all, {to + latents, 1, latents, latents, DType::f64}, matrix(sums, 1, latents));
  });
  same_codes<S>("dead", rows * 20, [&](const Played& play, S* to) {
    std::vector<double> since(latents);
    for (std::size_t i = 0; i < latents; ++i) since[i] = static_cast<double>(i % 5);
    std::vector<std::int32_t> starts(rows + 1), found(rows * 20);
    double dead = 0;
    DeadWork work({inputs,
                   weight,
                   matrix(bias, 1, latents),
                   {},
                   {since.data(), 1, latents, latents, DType::f64},
                   2.5,
                   20,
                   {rows,
                    {starts.data(), 1, rows + 1, rows + 1, DType::i32},
                    0,
                    {found.data(), 1, rows * 20, rows * 20, DType::i32},
                    {to, 1, rows * 20, rows * 20, dtype_of<S>}},
                   &dead});
    std::vector<double> memory(work.bytes() / sizeof(double) + 1);
    work.use(memory.data());
    select_among_dead(play, work);
    if constexpr (sizeof(S) == 4) {
      select_among_dead(play, work, [&](auto, std::int64_t first, std::int64_t some) {
        play(ScoreDeadByCores<EmulatedTf32>{work, first, some}, work.score_blocks(some));
      });
    }
  });
  same_codes<S>("batch", 50, [&](const Played& play, S* to) {
    std::vector<std::int32_t> starts(rows + 1), found(50);
    double smallest = 0;
    BatchWork work({inputs,
                    weight,
                    {},
                    {},
                    50,
                    {starts.data(), 1, rows + 1, rows + 1, DType::i32},
                    {found.data(), 1, 50, 50, DType::i32},
                    {to, 1, 50, 50, dtype_of<S>},
                    &smallest},
                   1);
    std::vector<double> memory(work.bytes() / sizeof(double) + 1);
    work.use(memory.data());
    select_from_batch(play, work, [](const Selection& part, const Tensor& scores) {
      for (std::int64_t row = 0; row < scores.rows; ++row) {
        for (std::int64_t col = 0; col < scores.cols; ++col) {
          S sum = 0;
          for (std::int64_t i = 0; i < features; ++i)
            sum += part.x.view<S>()(row, i) * part.weight.view<S>()(col, i);
          scores.view<S>()(row, col) = sum;
        }
      }
    });
  });
}

}  // namespace

int main() {
  codes<float>();
  passes<float>();
  passes<double>();
  tensor_products<EmulatedTf32, SmallTile>();
  tensor_products<EmulatedBf16, SmallTile>();
  tensor_products<EmulatedTf32, LargeTile>();
  tensor_products<EmulatedBf16, LargeTile>();
  windows<float>();
  windows<double>();
  noise<float>();
  noise<double>();
  totals();
  const std::int32_t selections[][3] = {{5001, 9000, 70}, {600, 9000, 512}, {1, 5000, 1}};
  for (const auto& [first, cols, k] : selections) {
    selection<float>(first, cols, k);
    selection<double>(first, cols, k);
  }
  rows();
  return verdict("races_test");
}
