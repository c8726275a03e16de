// Our own matrix product: B packed in panels, tiles of the output in registers (micro_kernel.h).
#pragma once

#include <cstdint>

#include "cpu/partition.h"

namespace fastsae::cpu {

// Whether this processor's instruction set has kernels of ours.
bool has_panels();

// C (m x n) = A B, or C += A B; row-major, and a transposed factor is stored as its transpose.
template <class S>
struct Product {
  bool transpose_a, transpose_b;
  std::int64_t m, n, k;
  const S* a;
  std::int64_t lda;
  const S* b;
  std::int64_t ldb;
  bool accumulate;
  S* c;
  std::int64_t ldc;
};

// A product in pieces that threads can share. B is packed a chunk at a time: columns of C and a range of k; then each
// range of rows can be computed alone. An output's terms are added in an order that depends on k alone: its bits are
// the same in whatever pieces C is computed, and on every instruction set.
template <class S>
class PanelProduct {
 public:
  // With `whole_sums` each chunk has the whole of k.
  explicit PanelProduct(const Product<S>& product, bool whole_sums = false);

  std::int64_t chunks() const { return col_chunks_.parts * inner_chunks_.parts; }
  // Numbers of the largest chunk; its memory is aligned to 64 bytes.
  std::int64_t packed_size() const;
  std::int64_t col_chunks() const { return col_chunks_.parts; }
  std::int64_t col_chunk(std::int64_t chunk) const { return chunk / inner_chunks_.parts; }
  // Panels of a chunk, columns of C that some of them are for, and whether it brings the last terms of their sums.
  std::int64_t panels(std::int64_t chunk) const { return at(chunk).panels.parts; }
  Range cols(std::int64_t chunk, Range panels) const;
  bool finishes(std::int64_t chunk) const { return (chunk + 1) % inner_chunks_.parts == 0; }
  // Independent tasks of packing.
  std::int64_t pieces(std::int64_t chunk) const;
  void pack(std::int64_t chunk, std::int64_t piece, S* packed) const;
  // Adds a chunk's terms to these rows and the columns of these panels of C.
  void run(std::int64_t chunk, Range rows, Range panels, const S* packed) const;
  // The same of a C whose first row and column here lie at `to`.
  void run_to(std::int64_t chunk, Range rows, Range panels, const S* packed, S* to,
              std::int64_t stride) const;

 private:
  struct Chunk {
    Range vectors, parts;
    Even panels;  // of the vectors
  };
  Chunk at(std::int64_t chunk) const;
  std::int64_t pieces_of(const Chunk& chunk) const;
  bool reads_in_place() const;

  const Product<S> p_;
  const std::int64_t width_;  // numbers of a vector
  const Even inner_;          // k, in the parts that it is summed in
  const Even col_chunks_;     // vectors of columns
  const Even inner_chunks_;   // those parts
};

// The whole of it on the calling thread.
template <class S>
void panel_gemm(const Product<S>& product);

// Elements of x weight' with the bits that the product has: of one row of x, with these rows of the weight.
template <class S>
void panel_elements(const S* x, std::int64_t inner, const S* weight, std::int64_t stride,
                    const std::int32_t* rows, std::int64_t count, S* to);

}  // namespace fastsae::cpu
