#include "serial_device.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "blocks.h"
#include "collect.h"
#include "core/error.h"
#include "dead.h"
#include "decode.h"
#include "images.h"
#include "kernels/list.h"
#include "latent_index.h"
#include "latents.h"
#include "rows.h"
#include "select_batch.h"
#include "select_tiles.h"
#include "serial_select.h"

namespace fastsae::cuda {
namespace {

std::int64_t blocks_of(std::int64_t items, std::int64_t per_block) {
  return (items + per_block - 1) / per_block;
}

// The partial sums of a grid, and their addition in block order.
struct Partials {
  std::vector<double> values;
  double* of(std::int64_t block, std::int64_t count) { return values.data() + block * count; }
  void add(std::int64_t parts, std::int64_t count, const Sums& sums) const {
    for (std::int64_t i = 0; i < count; ++i) {
      add_parts(i, values.data(), parts, count, sums.accumulate, sums.into.as<double>());
    }
  }
};

template <class K>
void map_grid(const std::byte* bytes, const Tensor& out, Sums sums) {
  using S = typename K::Scalar;
  K kernel;
  std::memcpy(&kernel, bytes, sizeof(K));
  if constexpr (K::pass == Pass::row_sum) {
    for (std::int64_t row = 0; row < out.rows; row += RowShape::rows(out.cols)) {
      SerialTeam<NoState> team(RowShape::members);
      RowShared<K> shared;
      row_block(team, kernel, Out<S>(out), Tile{row, 0, out.rows, out.cols}, shared, sums.into.as<double>());
    }
  } else {
    const std::int64_t parts = blocks_of(out.rows, MapShape::rows), count = K::sums * out.cols;
    Partials partial{std::vector<double>(static_cast<std::size_t>(parts * count))};
    const bool summing = K::sums > 0 && sums.into.exists();
    for (std::int64_t part = 0; part < parts; ++part) {
      for (std::int64_t col = 0; col < out.cols; col += MapShape::cols) {
        SerialTeam<NoState> team(MapShape::members);
        MapShared<K> shared;
        map_block(team, kernel, Out<S>(out), Tile{part * MapShape::rows, col, out.rows, out.cols}, shared,
                  summing ? partial.of(part, count) : nullptr);
      }
    }
    if (summing) partial.add(parts, count, sums);
  }
}

template <class K>
void product_grid(const K& kernel, const Factor& a, const Factor& b, const Tensor& out, bool accumulate,
                  Sums sums) {
  using S = typename K::Scalar;
  const std::int64_t parts = blocks_of(out.rows, ProductShape::tile), count = K::sums * out.cols;
  Partials partial{std::vector<double>(static_cast<std::size_t>(parts * count))};
  const bool summing = K::sums > 0 && sums.into.exists();
  for (std::int64_t part = 0; part < parts; ++part) {
    for (std::int64_t col = 0; col < out.cols; col += ProductShape::tile) {
      SerialTeam<ProductState<S>> team(ProductShape::members);
      ProductShared<K> shared;
      product_block(team, kernel, strided<S>(a, true), strided<S>(b, false), a.cols(), accumulate,
                    Out<S>(out), Tile{part * ProductShape::tile, col, out.rows, out.cols}, shared,
                    summing ? partial.of(part, count) : nullptr);
    }
  }
  if (summing) partial.add(parts, count, sums);
}

void gather_grid(const RowSource& source, const std::int64_t* order, const Tensor& out) {
  with_element(source.dtype, [&](auto element) {
    using From = decltype(element);
    with_scalar(out.dtype, [&](auto s) {
      using S = decltype(s);
      for (std::int64_t row = 0; row < out.rows; row += GatherShape::rows) {
        SerialTeam<NoState> team(GatherShape::members);
        gather_block(team, OrderedRows<From>(source, order), Out<S>(out), Tile{row, 0, out.rows, out.cols});
      }
    });
  });
}

void unfold_grid(const Windows& windows, const Tensor& images, const Tensor& columns) {
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    const int each = WindowShape::rows(columns.cols);
    for (std::int64_t row = 0; row < columns.rows; row += each) {
      SerialTeam<NoState> team(WindowShape::members);
      UnfoldShared shared;
      unfold_block(team, windows, images.as<const S>(), Out<S>(columns),
                   Tile{row, 0, columns.rows, columns.cols}, each, shared);
    }
  });
}

void fold_grid(const Windows& windows, const Tensor& columns, const Tensor& images) {
  with_scalar(images.dtype, [&](auto s) {
    using S = decltype(s);
    const int each = WindowShape::rows(images.cols);
    for (std::int64_t row = 0; row < images.rows; row += each) {
      SerialTeam<NoState> team(WindowShape::members);
      FoldShared shared;
      fold_block(team, windows, columns.view<const S>(), Out<S>(images),
                 Tile{row, 0, images.rows, images.cols}, each, shared);
    }
  });
}

std::int64_t search_grid(const RowSource& source, double low, double high) {
  std::int64_t first = source.rows;
  with_element(source.dtype, [&](auto element) {
    using From = decltype(element);
    for (std::int64_t row = 0; row < source.rows; row += SearchShape::rows) {
      SerialTeam<NoState> team(SearchShape::members);
      SearchShared shared;
      std::int64_t found = 0;
      search_block(team, OrderedRows<From>(source, nullptr), low, high,
                   Tile{row, 0, source.rows, source.cols}, shared, &found);
      first = std::min(first, found);
    }
  });
  return first < source.rows ? first : -1;
}

using Map = void (*)(const std::byte*, const Tensor&, Sums);
using Product = void (*)(const std::byte*, const Factor&, const Factor&, const Tensor&, bool, Sums);

template <class K>
constexpr Product product_of() {
  if constexpr (fuses<K>) {
    return [](const std::byte* bytes, const Factor& a, const Factor& b, const Tensor& out, bool accumulate,
              Sums sums) {
      K kernel;
      std::memcpy(&kernel, bytes, sizeof(K));
      product_grid(kernel, a, b, out, accumulate, sums);
    };
  } else {
    return nullptr;
  }
}

template <class List>
struct Table;
template <class... Ks>
struct Table<TypeList<Ks...>> {
  static constexpr std::array<Map, sizeof...(Ks)> map{map_grid<Ks>...};
  static constexpr std::array<Product, sizeof...(Ks)> product{product_of<Ks>()...};
};

class SerialDevice final : public Backend {
  // Runs jobs, block after block; shared memory holds whatever is there.
  auto launch() {
    return [this](const auto& job, std::int64_t blocks) {
      begin([job, blocks] {
        using Job = std::decay_t<decltype(job)>;
        const auto shared = std::make_unique<typename Job::Shared>();
        for (std::int64_t block = 0; block < blocks; ++block) {
          std::memset(static_cast<void*>(shared.get()), 0xff, sizeof(*shared));
          SerialTeam<typename Job::State> team(Job::members);
          job(team, *shared, block);
        }
      });
    };
  }
  // By three blocks, so that each has several latents.
  auto each_latent() {
    return [this](auto s, const auto& job) {
      begin([job] {
        using S = decltype(s);
        constexpr std::int64_t blocks = 3;
        const LatentRows& rows = job.work.rows;
        std::vector<S> memory(static_cast<std::size_t>(rows.encoder.cols + rows.decoder.cols));
        for (std::int64_t block = 0; block < blocks; ++block) {
          std::fill(memory.begin(), memory.end(), std::numeric_limits<S>::quiet_NaN());
          SerialTeam<NoState> team(LatentWork<S>::members);
          SumShared<2> shared;
          latents_block(team, job, shared, block, blocks, memory.data());
        }
      });
    };
  }
  // What a recorded step works on is kept for its replays.
  Memory scratch_of(std::size_t bytes) {
    Memory memory(std::malloc(bytes), [](void* p) { std::free(p); });
    std::memset(memory.get(), 0xff, bytes);
    if (recording_ != nullptr) recording_->push_back([memory] {});
    return memory;
  }

 public:
  bool reads_host_memory() const override { return false; }
  bool wants_shadows() const override { return false; }
  Place place() const override { return {2, 0}; }
  void* stream() const override { return nullptr; }
  void finish() noexcept override {}
  std::size_t free_memory() const override { return std::size_t{1} << 30; }
  FetchRows fetch_rows() const override { return nullptr; }
  Memory allocate(std::size_t bytes) override {
    outside_of_steps();
    return Memory(std::calloc(bytes + 1, 1), [](void* p) { std::free(p); });
  }

  void product(Factor a, Factor b, Tensor out, bool accumulate, const Kernel* kernel, Sums sums) override {
    begin([=, then = optional(kernel)] {
      const Product fused = then ? Table<KernelList>::product[then->index] : nullptr;
      if (fused != nullptr) return fused(then->bytes, a, b, out, accumulate, sums);
      with_scalar(out.dtype, [&](auto s) { product_grid(Keep<decltype(s)>{}, a, b, out, accumulate, {}); });
      if (then) pass(out, *then, sums);
    });
  }
  void map(Tensor out, const Kernel& kernel, Sums sums) override {
    begin([=] { pass(out, kernel, sums); });
  }
  void map_each(std::span<const Mapped> items) override {
    for (const Mapped& item : items) map(item.out, item.kernel, {});
  }
  void encode_select(const Selection& selection) override {
    // The least tile there is, so that it takes several.
    const DType dtype = selection.x.dtype;
    const ScoreTile tile = score_tile(selection.x.rows, selection.weight.rows, dtype, 1);
    const Memory scratch = scratch_of(tile.bytes(dtype));
    for_each_score_tile(selection, tile, scratch.get(),
                        [&](const Selection& part, const Tensor& scores, std::int64_t first) {
                          score(*this, part, scores);
                          begin([=] { select_grid(scores, first, part); });
                        });
  }
  void encode_select_batch(const BatchSelection& selection) override {
    BatchWork work(selection, 1);
    const Memory scratch = scratch_of(work.bytes());
    work.use(scratch.get());
    select_from_batch(launch(), work,
                      [&](const Selection& part, const Tensor& scores) { score(*this, part, scores); });
  }
  void select_dead(const DeadSelection& selection) override {
    DeadWork work(selection);
    const Memory scratch = scratch_of(work.bytes());
    work.use(scratch.get());
    select_among_dead(launch(), work);
  }
  void decode(const Decoding& decoding) override { decode_rows(launch(), decoding); }
  void collect(const Collection& collection) override {
    CollectWork work(collection);
    const Memory scratch = scratch_of(work.bytes());
    work.use(scratch.get());
    collect_elements(launch(), work);
  }
  void sum_by_latent(const Code& code, Tensor sums) override {
    LatentSums all(code, sums);
    const Memory scratch = scratch_of(all.bytes());
    all.use(scratch.get());
    sum_latents(launch(), all);
  }
  void write_code(const Code& code, Tensor rows) override { write_code_rows(launch(), code, rows); }
  void index_latents(std::span<const CodeGradient> codes, std::int64_t slots, const LatentIndex& index,
                     Tensor fired) override {
    IndexTasks tasks(codes, slots, index, fired);
    const Memory scratch = scratch_of(tasks.bytes());
    tasks.use(scratch.get());
    index_codes(launch(), tasks);
  }
  void measure_latents(const LatentRows& rows, Tensor squares, Tensor sums) override {
    measure_all(launch(), each_latent(), rows, squares, sums);
  }
  void write_latents(const LatentRows& rows, Tensor encoder, Tensor decoder) override {
    write_all(each_latent(), rows, encoder, decoder);
  }
  void update_latents(const LatentRows& rows, const LatentUpdate& update) override {
    update_all(each_latent(), rows, update);
  }
  void row_norms(Tensor of, Tensor norms) override { norms_of_rows(launch(), of, norms); }
  void unfold(const Windows& windows, Tensor images, Tensor columns) override {
    begin([=] { unfold_grid(windows, images, columns); });
  }
  void fold(const Windows& windows, Tensor columns, Tensor images, const Kernel* kernel, Sums sums) override {
    begin([=, then = optional(kernel)] {
      fold_grid(windows, columns, images);
      if (then) pass(images, *then, sums);
    });
  }
  void copy(Tensor to, Tensor from) override {
    begin([=] { copy_rows(to, from); });
  }
  void fill(Tensor to, double value) override {
    begin([=] {
      with_scalar(to.dtype, [&](auto s) {
        using S = decltype(s);
        for (std::int64_t row = 0; row < to.rows; ++row) {
          for (std::int64_t col = 0; col < to.cols; ++col) to.view<S>()(row, col) = static_cast<S>(value);
        }
      });
    });
  }
  void add_totals(std::span<const Total> totals) override {
    begin([all = std::vector<Total>(totals.begin(), totals.end())] {
      SerialTeam<NoState> team(TotalShape::members);
      TotalShared shared;
      for (const Total& total : all) {
        total_block(team, total.of.view<const double>(), total.of.rows, total.of.cols, total.scale, shared,
                    total.to);
      }
    });
  }

  void gather(const RowSource& source, const std::int64_t* order, Tensor out) override {
    outside_of_steps();
    if (source.on_device) return gather_grid(source, order, out);
    const ConvertRow convert = row_converter(source.dtype, out.dtype);
    for (std::int64_t row = 0; row < out.rows; ++row) {
      convert(source.row(order == nullptr ? row : order[row]), out.slice_rows(row, 1).data, out.cols);
    }
  }
  std::int64_t first_row_outside(const RowSource& source, double low, double high) override {
    outside_of_steps();
    return search_grid(source, low, high);
  }
  void read(const Tensor& from, void* to) override {
    outside_of_steps();
    copy_rows({to, from.rows, from.cols, from.cols, from.dtype}, from);
  }
  void write(const Tensor& to, const void* from) override {
    outside_of_steps();
    copy_rows(to, {const_cast<void*>(from), to.rows, to.cols, to.cols, to.dtype});
  }

  void step(std::int64_t key, const std::function<void()>& body) override {
    const auto [record, fresh] = records_.try_emplace(key);
    if (!fresh) {
      for (const auto& call : record->second) call();
      return;
    }
    recording_ = &record->second;
    body();
    recording_ = nullptr;
  }
  // Both are recorded before either runs.
  void either(const double* number, const std::function<void()>& yes,
              const std::function<void()>& no) override {
    if (recording_ == nullptr) return (*number != 0 ? yes : no)();
    const std::array<Calls, 2> both{recorded(yes), recorded(no)};
    begin([number, both] {
      for (const auto& call : both[*number != 0 ? 0 : 1]) call();
    });
  }
  std::int64_t steps_in_flight() const override { return kStepsInFlight; }
  void poll() override {}

 private:
  using Calls = std::vector<std::function<void()>>;

  static std::optional<Kernel> optional(const Kernel* kernel) {
    return kernel == nullptr ? std::nullopt : std::optional<Kernel>(*kernel);
  }
  static void pass(const Tensor& out, const Kernel& kernel, const Sums& sums) {
    Table<KernelList>::map[kernel.index](kernel.bytes, out, sums);
  }
  static void copy_rows(const Tensor& to, const Tensor& from) {
    for (std::int64_t row = 0; row < from.rows; ++row) {
      std::memcpy(to.slice_rows(row, 1).data, from.slice_rows(row, 1).data, from.row_bytes());
    }
  }
  // What a branch of a step does, which is not done yet.
  Calls recorded(const std::function<void()>& body) {
    Calls calls;
    const bool before = std::exchange(waiting_, true);
    Calls* const outer = std::exchange(recording_, &calls);
    body();
    recording_ = outer;
    waiting_ = before;
    return calls;
  }
  void begin(std::function<void()> call) {
    if (!waiting_) call();
    if (recording_ != nullptr) recording_->push_back(std::move(call));
  }
  void outside_of_steps() const {
    FS_REQUIRE(recording_ == nullptr, "a step must not allocate, gather, read or write");
  }

  std::map<std::int64_t, Calls> records_;
  Calls* recording_ = nullptr;
  bool waiting_ = false;
};

}  // namespace

std::unique_ptr<Backend> serial_device() { return std::make_unique<SerialDevice>(); }

}  // namespace fastsae::cuda
