#include "cpu/product.h"

#include <algorithm>

#include "cpu/bf16.h"
#include "cpu/panels.h"
#include "cpu/partition.h"
#include "cpu/provider.h"
#include "cpu/summing.h"
#include "kernels/list.h"

namespace fastsae::cpu {
namespace {

constexpr std::int64_t kTaskTerms = 1 << 18;    // multiply-adds that are worth waking threads for
constexpr std::int64_t kPackedAlone = 1 << 13;  // numbers that the calling thread packs by itself

template <class S>
const S* at(const Factor& f, std::int64_t row, std::int64_t col) {
  const std::int64_t r = f.transposed ? col : row, c = f.transposed ? row : col;
  return f.tensor.as<S>() + r * f.tensor.stride + c;
}

// These rows and columns of the output, from this range of the inner dimension.
template <class S>
Product<S> part_of(const Factor& a, const Factor& b, Range rows, Range cols, Range inner, bool accumulate,
                   S* c, std::int64_t ldc) {
  return {a.transposed,
          b.transposed,
          rows.end - rows.begin,
          cols.end - cols.begin,
          inner.end - inner.begin,
          at<S>(a, rows.begin, inner.begin),
          a.tensor.stride,
          at<S>(b, inner.begin, cols.begin),
          b.tensor.stride,
          accumulate,
          c,
          ldc};
}

// Rows whose sums are added up before they join the others.
Even sum_blocks(std::int64_t rows) {
  const std::int64_t most = std::clamp<std::int64_t>(rows / 128, 16, 64);
  return {rows, std::clamp<std::int64_t>(rows / 16, rows < 16 ? 1 : 2, most)};
}

// By our own kernels. How the work is shared depends on the number of threads, the bits do not.
template <class S>
void by_panels(const Product<S>& p, const Tensor& out, const Kernel* kernel, Sums sums, Scratch& scratch,
               const Parallel& parallel) {
  const PanelProduct<S> product(p);
  const Even blocks = sum_blocks(p.m);
  const std::int64_t tasks = std::clamp<std::int64_t>(p.m * p.n * p.k / kTaskTerms, 1, threads_here());
  // Few rows are shared by columns, unless these are summed.
  const Even groups{blocks.parts, std::min(tasks, blocks.parts)};
  const bool sums_rows = kernel != nullptr && kernel->pass == Pass::row_sum;
  const std::int64_t col_tasks = sums_rows ? 1 : tasks / groups.parts;
  Summing pass(kernel, out, blocks.parts, product.col_chunks(), scratch, sums);
  Scratch::Lease lease(scratch, doubles_for<S>(product.packed_size()));
  S* const packed = aligned<S>(lease.data());
  for (std::int64_t chunk = 0; chunk < product.chunks(); ++chunk) {
    const std::int64_t pieces = product.pieces(chunk);
    const auto pack = [&](std::int64_t piece) { product.pack(chunk, piece, packed); };
    if (tasks > 1 && product.packed_size() > kPackedAlone) {
      parallel(pieces, pack);
    } else {
      for (std::int64_t piece = 0; piece < pieces; ++piece) pack(piece);
    }
    const Even col_groups{product.panels(chunk), std::min(col_tasks, product.panels(chunk))};
    parallel(groups.parts * col_groups.parts, [&](std::int64_t task) {
      const Range mine = groups[task / col_groups.parts], panels = col_groups[task % col_groups.parts];
      product.run(chunk, {blocks[mine.begin].begin, blocks[mine.end - 1].end}, panels, packed);
      if (!product.finishes(chunk)) return;
      const Range cols = product.cols(chunk, panels);
      for (std::int64_t block = mine.begin; block < mine.end; ++block)
        pass.run({blocks[block].begin, blocks[block].end, cols.begin, cols.end}, block,
                 product.col_chunk(chunk));
    });
  }
  pass.finish();
}

// Tile by tile; `multiply` makes one, which the kernel then finishes.
template <class Multiply>
void in_tiles(const Tiling& tiles, const Tensor& out, const Kernel* kernel, Sums sums, Scratch& scratch,
              const Parallel& parallel, const Multiply& multiply) {
  Summing pass(kernel, out, tiles.rows.parts, tiles.cols.parts, scratch, sums);
  parallel(tiles.count(), [&](std::int64_t tile) {
    const std::int64_t row_part = tile / tiles.cols.parts, col_part = tile % tiles.cols.parts;
    const Range r = tiles.rows[row_part], c = tiles.cols[col_part];
    multiply(r, c);
    pass.run({r.begin, r.end, c.begin, c.end}, row_part, col_part);
  });
  pass.finish();
}

// In tiles of factors that are rounded and packed once.
void packed_as_bf16(const Factor& a, const Factor& b, const Tiling& tiles, const Tensor& out, bool accumulate,
                    const Kernel* kernel, Sums sums, Scratch& scratch, const Parallel& parallel) {
  const std::int64_t inner = a.cols();
  Scratch::Lease lease(scratch, Bf16Product::bytes(out.rows, out.cols, inner) / sizeof(double) + 1);
  const Bf16Product product(bf16_units().front(), {a.tensor.as<float>(), a.tensor.stride, !a.transposed},
                            {b.tensor.as<float>(), b.tensor.stride, b.transposed}, out.rows, out.cols, inner,
                            lease.data());
  parallel(product.parts(), [&](std::int64_t part) { product.pack(part); });
  in_tiles(tiles, out, kernel, sums, scratch, parallel, [&](Range r, Range c) {
    product.multiply(r, c, accumulate, &out.view<float>()(r.begin, c.begin), out.stride);
  });
}

// The inner dimension in parts that make an output each; they are added in order.
template <class S>
void in_parts(const Factor& a, const Factor& b, const Cut& parts, Provider provider, const Tensor& out,
              bool accumulate, const Kernel* kernel, Sums sums, Scratch& scratch, const Parallel& parallel) {
  const std::int64_t size = out.size();
  Scratch::Lease lease(scratch, static_cast<std::size_t>(parts.parts * size));
  S* const partial = reinterpret_cast<S*>(lease.data());
  parallel(parts.parts, [&](std::int64_t part) {
    multiply(provider, part_of(a, b, {0, out.rows}, {0, out.cols}, parts[part], false, partial + part * size,
                               out.cols));
  });
  for (std::int64_t row = 0; row < out.rows; ++row) {
    S* line = out.as<S>() + row * out.stride;
    if (!accumulate) std::fill_n(line, out.cols, S(0));
    for (std::int64_t part = 0; part < parts.parts; ++part) {
      const S* from = partial + part * size + row * out.cols;
      for (std::int64_t col = 0; col < out.cols; ++col) line[col] += from[col];
    }
  }
  Summing pass(kernel, out, 1, 1, scratch, sums);
  pass.run({0, out.rows, 0, out.cols}, 0, 0);
  pass.finish();
}

template <class S>
void product_of(const Factor& a, const Factor& b, const Tensor& out, bool accumulate, const Kernel* kernel,
                Sums sums, Precision precision, Scratch& scratch, const Parallel& parallel) {
  const std::int64_t inner = a.cols();
  const bool rounds = precision == Precision::bf16 && out.dtype == DType::f32;
  const Provider provider =
      rounds ? Provider::bf16
             : provider_for(a.transposed, b.transposed, out.rows, out.cols, inner, out.dtype);
  if (const Cut parts = inner_parts(out.rows, out.cols, inner); parts.parts > 1)
    return in_parts<S>(a, b, parts, provider, out, accumulate, kernel, sums, scratch, parallel);
  if (provider == Provider::panels && inner > 0)
    return by_panels(
        part_of(a, b, {0, out.rows}, {0, out.cols}, {0, inner}, accumulate, out.as<S>(), out.stride), out,
        kernel, sums, scratch, parallel);
  const Tiling tiles = Tiling::of(out.rows, out.cols, inner);
  if (rounds && Bf16Product::pays(out.rows, out.cols, inner, tiles.rows.parts, tiles.cols.parts))
    return packed_as_bf16(a, b, tiles, out, accumulate, kernel, sums, scratch, parallel);
  in_tiles(tiles, out, kernel, sums, scratch, parallel, [&](Range r, Range c) {
    multiply(provider,
             part_of(a, b, r, c, {0, inner}, accumulate, &out.view<S>()(r.begin, c.begin), out.stride));
  });
}

}  // namespace

void product(const Factor& a, const Factor& b, const Tensor& out, bool accumulate, const Kernel* kernel,
             Sums sums, Precision precision, Scratch& scratch, const Parallel& parallel) {
  with_scalar(out.dtype, [&](auto s) {
    product_of<decltype(s)>(a, b, out, accumulate, kernel, sums, precision, scratch, parallel);
  });
}

}  // namespace fastsae::cpu
