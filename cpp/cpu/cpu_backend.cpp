#include "cpu/cpu_backend.h"

#include <unistd.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "backend/convert.h"
#include "core/error.h"
#include "cpu/decode.h"
#include "cpu/float_mode.h"
#include "cpu/images.h"
#include "cpu/latents.h"
#include "cpu/loops.h"
#include "cpu/partition.h"
#include "cpu/pool.h"
#include "cpu/product.h"
#include "cpu/scratch.h"
#include "cpu/select.h"
#include "cpu/summing.h"
#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

// Bytes that can still be had without swapping; the kernel's own estimate where there is one.
std::size_t available_memory() {
  std::ifstream info("/proc/meminfo");
  std::string key;
  std::size_t kilobytes = 0;
  while (info >> key >> kilobytes) {
    if (key == "MemAvailable:") return kilobytes * 1024;
    info.ignore(256, '\n');
  }
  return static_cast<std::size_t>(-1);
}

// Dense memory for the elements of a tensor.
Tensor dense(const Tensor& like, void* memory) {
  return {memory, like.rows, like.cols, like.cols, like.dtype};
}

void copy_rows(const Tensor& to, const Tensor& from) {
  for (std::int64_t row = 0; row < from.rows; ++row) {
    std::memcpy(to.slice_rows(row, 1).data, from.slice_rows(row, 1).data, from.row_bytes());
  }
}

constexpr std::int64_t kDecodedRows = 16;  // of a task

class CpuBackend final : public Backend {
 public:
  CpuBackend(Precision precision, Poll poll) : precision_(precision), poll_(std::move(poll)) { (void)isa(); }

  bool reads_host_memory() const override { return true; }

  Place place() const override { return {}; }

  void* stream() const override { return nullptr; }

  void finish() noexcept override {}

  std::size_t free_memory() const override { return available_memory(); }

  FetchRows fetch_rows() const override {
    return [](Place, const Tensor& from, void* to) { copy_rows(dense(from, to), from); };
  }

  bool wants_shadows() const override { return false; }

  Memory allocate(std::size_t bytes) override {
    constexpr std::size_t kLine = 64, kHugePage = std::size_t{1} << 21;
    const std::size_t alignment = bytes >= 4 * kHugePage ? kHugePage : kLine;
    const std::size_t padded = (std::max<std::size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
    const std::size_t free_bytes = available_memory();
    void* memory = padded < bytes || padded > free_bytes ? nullptr : std::aligned_alloc(alignment, padded);
    if (memory == nullptr) throw MemoryError(bytes, free_bytes);
#if defined(MADV_HUGEPAGE)
    // Latents' rows are found in any order: with fewer pages there are fewer to look up. A wish, which may be refused.
    if (alignment == kHugePage) (void)madvise(memory, padded, MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, padded);
    return Memory(memory, [](void* p) { std::free(p); });
  }

  void product(Factor a, Factor b, Tensor out, bool accumulate, const Kernel* kernel, Sums sums) override {
    FlushDenormals flush;
    const auto run = [this](std::int64_t count, const Task& task) { parallel(count, task); };
    cpu::product(a, b, out, accumulate, kernel, sums, precision_, scratch_, run);
  }

  void map(Tensor out, const Kernel& kernel, Sums sums) override {
    FlushDenormals flush;
    const Cut rows = map_blocks(out.rows, out.cols);
    Summing pass(&kernel, out, rows.parts, 1, scratch_, sums);
    // An update must not stop halfway: no polling here.
    parallel(
        rows.parts,
        [&](std::int64_t part) { pass.run({rows[part].begin, rows[part].end, 0, out.cols}, part, 0); },
        false);
    pass.finish();
  }

  // One task for each block of each tensor; together they may be too little to wake a thread for.
  void map_each(std::span<const Mapped> items) override {
    constexpr std::int64_t kTaskElements = 1 << 12;
    FlushDenormals flush;
    const auto cut = [](const Mapped& item) { return map_blocks(item.out.rows, item.out.cols); };
    std::int64_t blocks = 0, elements = 0;
    for (const Mapped& item : items) {
      blocks += cut(item).parts;
      elements += item.out.size();
    }
    const auto run = [&](std::int64_t block) {
      const Mapped* item = items.data();
      for (; block >= cut(*item).parts; ++item) block -= cut(*item).parts;
      const Range rows = cut(*item)[block];
      find_loop(item->kernel)(item->kernel.bytes, item->out, {rows.begin, rows.end, 0, item->out.cols},
                              nullptr, 0);
    };
    if (elements > kTaskElements) return parallel(blocks, run, false);
    for (std::int64_t block = 0; block < blocks; ++block) run(block);
  }

  void encode_select(const Selection& selection) override {
    cpu::encode_select(selection, precision_, rounding_, scratch_, crew());
  }

  void select_dead(const DeadSelection& selection) override {
    FlushDenormals flush;
    cpu::select_dead(selection, precision_, rounding_, scratch_, crew());
  }

  void decode(const Decoding& decoding) override {
    const Even rows = Even::at_most(decoding.code.rows, kDecodedRows);
    parallel(rows.parts, [&](std::int64_t part) { cpu::decode(decoding, rows[part]); });
  }

  void collect(const Collection& collection) override { cpu::collect(collection, scratch_, crew()); }

  void either(const double* number, const std::function<void()>& yes,
              const std::function<void()>& no) override {
    (*number != 0 ? yes : no)();
  }

  void sum_by_latent(const Code& code, Tensor sums) override { cpu::sum_by_latent(code, sums); }

  bool list_elements(Tensor tile, const Code& code) override {
    return cpu::list_elements(tile, code, crew());
  }
  void write_code(const Code& code, Tensor rows) override {
    const Even parts = Even::at_most(rows.rows, kDecodedRows);
    parallel(parts.parts, [&](std::int64_t part) { cpu::write_code(code, rows, parts[part]); });
  }

  void row_norms(Tensor of, Tensor norms) override {
    const Cut rows = map_blocks(of.rows, of.cols);
    parallel(rows.parts, [&](std::int64_t part) { cpu::row_norms(of, norms, rows[part]); });
  }

  void index_latents(std::span<const CodeGradient> codes, std::int64_t slots, const LatentIndex& index,
                     Tensor fired) override {
    cpu::index_latents(codes, slots, index, fired, scratch_, crew());
  }

  void measure_latents(const LatentRows& rows, Tensor squares, Tensor sums) override {
    cpu::measure_latents(rows, squares, sums, scratch_, crew());
  }

  void write_latents(const LatentRows& rows, Tensor encoder, Tensor decoder) override {
    cpu::write_latents(rows, encoder, decoder, scratch_, crew());
  }

  void update_latents(const LatentRows& rows, const LatentUpdate& update) override {
    // An update must not stop halfway: no polling here.
    cpu::update_latents(rows, update, scratch_,
                        [this](std::int64_t count, const Task& task) { parallel(count, task, false); });
  }

  void encode_select_batch(const BatchSelection& selection) override {
    cpu::encode_select_batch(selection, precision_, rounding_, scratch_, crew());
  }

  void unfold(const Windows& windows, Tensor images, Tensor columns) override {
    const Cut lines = map_blocks(columns.rows / windows.cols, windows.cols * columns.cols);
    parallel(lines.parts, [&](std::int64_t part) {
      cpu::unfold(windows, images, columns, lines[part].begin, lines[part].end);
    });
  }

  void fold(const Windows& windows, Tensor columns, Tensor images, const Kernel* kernel, Sums sums) override {
    FlushDenormals flush;
    const std::int64_t width = windows.width;
    const Cut lines = map_blocks(images.rows / width, width * images.cols);
    Summing pass(kernel, images, lines.parts, 1, scratch_, sums);
    parallel(lines.parts, [&](std::int64_t part) {
      cpu::fold(windows, columns, images, lines[part].begin, lines[part].end);
      pass.run({lines[part].begin * width, lines[part].end * width, 0, images.cols}, part, 0);
    });
    pass.finish();
  }

  void copy(Tensor to, Tensor from) override { copy_rows(to, from); }

  void fill(Tensor to, double value) override {
    with_scalar(to.dtype, [&](auto s) {
      using S = decltype(s);
      for (std::int64_t row = 0; row < to.rows; ++row) {
        std::fill_n(to.as<S>() + row * to.stride, to.cols, static_cast<S>(value));
      }
    });
  }

  void gather(const RowSource& source, const std::int64_t* order, Tensor out) override {
    const ConvertRow convert = row_converter(source.dtype, out.dtype);
    const Cut blocks = map_blocks(out.rows, out.cols);
    parallel(blocks.parts, [&](std::int64_t part) {
      for (std::int64_t row = blocks[part].begin; row < blocks[part].end; ++row) {
        const std::int64_t index = order == nullptr ? row : order[row];
        convert(source.row(index), out.slice_rows(row, 1).data, out.cols);
      }
    });
  }

  std::int64_t first_row_outside(const RowSource& source, double low, double high) override {
    const Cut blocks = map_blocks(source.rows, source.cols);
    std::vector<std::int64_t> found(static_cast<std::size_t>(blocks.parts), -1);
    with_element(source.dtype, [&](auto element) {
      using From = decltype(element);
      const auto is_outside = [=](From value) { return outside(value, low, high); };
      parallel(blocks.parts, [&](std::int64_t part) {
        for (std::int64_t row = blocks[part].begin; row < blocks[part].end; ++row) {
          const From* line = reinterpret_cast<const From*>(source.row(row));
          if (std::none_of(line, line + source.cols, is_outside)) continue;
          found[static_cast<std::size_t>(part)] = row;
          return;
        }
      });
    });
    const auto first = std::find_if(found.begin(), found.end(), [](std::int64_t row) { return row >= 0; });
    return first == found.end() ? -1 : *first;
  }

  void read(const Tensor& from, void* to) override { copy_rows(dense(from, to), from); }

  void write(const Tensor& to, const void* from) override {
    copy_rows(to, dense(to, const_cast<void*>(from)));
  }

  void add_totals(std::span<const Total> totals) override {
    for (const auto& [of, scale, to] : totals) {
      double sum = 0;
      for (std::int64_t row = 0; row < of.rows; ++row) {
        for (std::int64_t col = 0; col < of.cols; ++col) sum += of.as<double>()[row * of.stride + col];
      }
      *to += scale * sum;
    }
  }

  void step(std::int64_t, const std::function<void()>& body) override { body(); }

  std::int64_t steps_in_flight() const override { return 1; }

  void poll() override {
    if (poll_) poll_();
  }

 private:
  Parallel crew() {
    return [this](std::int64_t count, const Task& task) { parallel(count, task); };
  }

  void parallel(std::int64_t count, const Task& task, bool polls = true) {
    static const std::function<void()> nothing = [] {};
    pool_.run(count, task, polls && poll_ ? poll_ : nothing);
  }

  Pool pool_;
  Scratch scratch_;
  RoundingTrials rounding_;
  const Precision precision_;
  const Poll poll_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(Precision precision, Poll poll) {
  return std::make_unique<CpuBackend>(precision, std::move(poll));
}

}  // namespace fastsae::cpu
