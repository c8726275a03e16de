#include "cpu/cpu_backend.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "backend/convert.h"
#include "core/error.h"
#include "cpu/bf16.h"
#include "cpu/blas.h"
#include "cpu/float_mode.h"
#include "cpu/images.h"
#include "cpu/loops.h"
#include "cpu/partition.h"
#include "cpu/pool.h"
#include "cpu/scratch.h"
#include "cpu/select.h"
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

// One pass over an output: which loop, and the partial sums of each block until they are added in block
// order.
class Summing {
 public:
  Summing(const Kernel* kernel, const Tensor& out, std::int64_t row_parts, std::int64_t col_parts,
          Scratch& scratch, Sums sums)
      : kernel_(kernel),
        out_(out),
        row_parts_(row_parts),
        col_parts_(col_parts),
        sums_(sums),
        lease_(scratch, partials()) {
    if (kernel_ != nullptr) loop_ = find_loop(*kernel_);
  }

  void run(Block block, std::int64_t row_part, std::int64_t col_part) {
    if (kernel_ == nullptr) return;
    if (kernel_->pass == Pass::col_sum) {
      loop_(kernel_->bytes, out_, block, lease_.data() + row_part * kernel_->sums * out_.cols, out_.cols);
    } else if (kernel_->pass == Pass::row_sum) {
      loop_(kernel_->bytes, out_, block, lease_.data() + col_part, col_parts_);
    } else {
      loop_(kernel_->bytes, out_, block, nullptr, 0);
    }
  }

  void finish() {
    if (kernel_ == nullptr || kernel_->pass == Pass::each || !sums_.into.exists()) return;
    double* into = sums_.into.as<double>();
    const bool columns = kernel_->pass == Pass::col_sum;
    const std::int64_t count = columns ? kernel_->sums * out_.cols : out_.rows;
    const std::int64_t parts = columns ? row_parts_ : col_parts_;
    const std::int64_t step = columns ? count : 1, first = columns ? 1 : col_parts_;
    for (std::int64_t i = 0; i < count; ++i) {
      double sum = sums_.accumulate ? into[i] : 0.0;
      for (std::int64_t part = 0; part < parts; ++part) sum += lease_.data()[i * first + part * step];
      into[i] = sum;
    }
  }

 private:
  std::size_t partials() const {
    if (kernel_ == nullptr || kernel_->pass == Pass::each) return 0;
    const std::int64_t count =
        kernel_->pass == Pass::col_sum ? row_parts_ * kernel_->sums * out_.cols : out_.rows * col_parts_;
    return static_cast<std::size_t>(count);
  }

  const Kernel* kernel_;
  const Tensor& out_;
  const std::int64_t row_parts_, col_parts_;
  const Sums sums_;
  Loop loop_ = nullptr;
  Scratch::Lease lease_;
};

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
    constexpr std::size_t kAlignment = 64;
    const std::size_t padded = (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    const std::size_t free_bytes = available_memory();
    void* memory = padded < bytes || padded > free_bytes ? nullptr : std::aligned_alloc(kAlignment, padded);
    if (memory == nullptr) throw MemoryError(bytes, free_bytes);
    std::memset(memory, 0, padded);
    return Memory(memory, [](void* p) { std::free(p); });
  }

  void product(Factor a, Factor b, Tensor out, bool accumulate, const Kernel* kernel, Sums sums) override {
    with_scalar(out.dtype, [&](auto s) { product_of<decltype(s)>(a, b, out, accumulate, kernel, sums); });
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

  // One task for each block of each tensor.
  void map_each(std::span<const Mapped> items) override {
    FlushDenormals flush;
    const auto cut = [](const Mapped& item) { return map_blocks(item.out.rows, item.out.cols); };
    std::int64_t blocks = 0;
    for (const Mapped& item : items) blocks += cut(item).parts;
    parallel(
        blocks,
        [&](std::int64_t block) {
          const Mapped* item = items.data();
          for (; block >= cut(*item).parts; ++item) block -= cut(*item).parts;
          const Range rows = cut(*item)[block];
          find_loop(item->kernel)(item->kernel.bytes, item->out, {rows.begin, rows.end, 0, item->out.cols},
                                  nullptr, 0);
        },
        false);
  }

  void encode_select(const Selection& selection) override {
    cpu::encode_select(selection, precision_, scratch_,
                       [this](std::int64_t count, const Pool::Task& task) { parallel(count, task); });
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
  void parallel(std::int64_t count, const Pool::Task& task, bool polls = true) {
    static const std::function<void()> nothing = [] {};
    pool_.run(count, task, polls && poll_ ? poll_ : nothing);
  }

  template <class S>
  static const S* at(const Factor& f, std::int64_t row, std::int64_t col) {
    const std::int64_t r = f.transposed ? col : row, c = f.transposed ? row : col;
    return f.tensor.as<S>() + r * f.tensor.stride + c;
  }

  template <class S>
  void product_in_parts(const Factor& a, const Factor& b, const Cut& parts, const Tensor& out,
                        bool accumulate, const Kernel* kernel, Sums sums) {
    const std::int64_t size = out.size();
    Scratch::Lease lease(scratch_, static_cast<std::size_t>(parts.parts * size));
    S* const partial = reinterpret_cast<S*>(lease.data());
    parallel(parts.parts, [&](std::int64_t part) {
      const Range k = parts[part];
      gemm(precision_, a.transposed, b.transposed, out.rows, out.cols, k.end - k.begin, at<S>(a, 0, k.begin),
           a.tensor.stride, at<S>(b, k.begin, 0), b.tensor.stride, S(0), partial + part * size, out.cols);
    });
    for (std::int64_t row = 0; row < out.rows; ++row) {
      S* line = out.as<S>() + row * out.stride;
      if (!accumulate) std::fill_n(line, out.cols, S(0));
      for (std::int64_t part = 0; part < parts.parts; ++part) {
        const S* from = partial + part * size + row * out.cols;
        for (std::int64_t col = 0; col < out.cols; ++col) line[col] += from[col];
      }
    }
    Summing pass(kernel, out, 1, 1, scratch_, sums);
    pass.run({0, out.rows, 0, out.cols}, 0, 0);
    pass.finish();
  }

  // `multiply` makes a tile, which the kernel then finishes.
  template <class Multiply>
  void in_tiles(const Tiling& tiles, const Tensor& out, const Kernel* kernel, Sums sums,
                const Multiply& multiply) {
    Summing pass(kernel, out, tiles.rows.parts, tiles.cols.parts, scratch_, sums);
    parallel(tiles.count(), [&](std::int64_t tile) {
      const std::int64_t row_part = tile / tiles.cols.parts, col_part = tile % tiles.cols.parts;
      const Range r = tiles.rows[row_part], c = tiles.cols[col_part];
      multiply(r, c);
      pass.run({r.begin, r.end, c.begin, c.end}, row_part, col_part);
    });
    pass.finish();
  }

  void product_packed(const Factor& a, const Factor& b, const Tiling& tiles, const Tensor& out,
                      bool accumulate, const Kernel* kernel, Sums sums) {
    const std::int64_t inner = a.cols();
    Scratch::Lease lease(scratch_, Bf16Product::bytes(out.rows, out.cols, inner) / sizeof(double) + 1);
    const Bf16Product product(bf16_units().front(), {a.tensor.as<float>(), a.tensor.stride, !a.transposed},
                              {b.tensor.as<float>(), b.tensor.stride, b.transposed}, out.rows, out.cols,
                              inner, lease.data());
    parallel(product.parts(), [&](std::int64_t part) { product.pack(part); });
    in_tiles(tiles, out, kernel, sums, [&](Range r, Range c) {
      product.multiply(r, c, accumulate, &out.view<float>()(r.begin, c.begin), out.stride);
    });
  }

  template <class S>
  void product_of(const Factor& a, const Factor& b, const Tensor& out, bool accumulate, const Kernel* kernel,
                  Sums sums) {
    FlushDenormals flush;
    const std::int64_t inner = a.cols();
    if (const Cut parts = inner_parts(out.rows, out.cols, inner); parts.parts > 1)
      return product_in_parts<S>(a, b, parts, out, accumulate, kernel, sums);
    const Tiling tiles = Tiling::of(out.rows, out.cols, inner);
    if (out.dtype == DType::f32 && precision_ == Precision::bf16 &&
        Bf16Product::pays(out.rows, out.cols, inner, tiles.rows.parts, tiles.cols.parts))
      return product_packed(a, b, tiles, out, accumulate, kernel, sums);
    in_tiles(tiles, out, kernel, sums, [&](Range r, Range c) {
      gemm(precision_, a.transposed, b.transposed, r.end - r.begin, c.end - c.begin, inner,
           at<S>(a, r.begin, 0), a.tensor.stride, at<S>(b, 0, c.begin), b.tensor.stride,
           accumulate ? S(1) : S(0), &out.view<S>()(r.begin, c.begin), out.stride);
    });
  }

  Pool pool_;
  Scratch scratch_;
  const Precision precision_;
  const Poll poll_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(Precision precision, Poll poll) {
  return std::make_unique<CpuBackend>(precision, std::move(poll));
}

}  // namespace fastsae::cpu
