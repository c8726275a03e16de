// Matrix products of factors rounded to bfloat16, on processors that have instructions for it.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/bf16_blocks.h"
#include "cpu/partition.h"

namespace fastsae::cpu {

// One way to multiply, see bf16_blocks.h.
struct Bf16Unit {
  const char* name;
  void (*multiply)(const Lines& left, const Lines& right, std::int64_t m, std::int64_t n, std::int64_t k,
                   bool add, float* c, std::int64_t ldc);
  void (*pack)(const Lines& lines, bool pairs, std::int64_t count, std::int64_t depth, Bf16* to);
  void (*multiply_packed)(const BlockProduct& product);
};

// Those that this process may use, the fastest first: "amx", then "avx512_bf16". None below FASTSAE_ISA=avx512.
const std::vector<Bf16Unit>& bf16_units();

// The name of the fastest one, by which the rest is computed; null where there is none.
const char* bf16_unit();

// C (m x n) = A B + beta C, row-major, as in blas.h; beta is 0 or 1. The factors are rounded to nearest while they
// are packed, ties to even, and their products summed in float32. The bits of an element depend on k alone.
void gemm_bf16(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
               const float* a, std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c,
               std::int64_t ldc);

// The same with the same bits for many tiles of C, whose factors are packed once, by many threads: first each part, then
// each tile. Tiles begin at multiples of 16.
class Bf16Product {
 public:
  // Whether packing once saves more than the threads lose by waiting for each other, and takes at most 64 MiB.
  static bool pays(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t row_tiles,
                   std::int64_t col_tiles);
  static std::size_t bytes(std::int64_t m, std::int64_t n, std::int64_t k);

  Bf16Product(const Bf16Unit& unit, const Lines& a, const Lines& b, std::int64_t m, std::int64_t n,
              std::int64_t k, void* memory);
  std::int64_t parts() const;
  void pack(std::int64_t part) const;
  void multiply(Range rows, Range cols, bool add, float* c, std::int64_t ldc) const;

 private:
  static constexpr std::size_t kAlignment = 64;

  const Bf16Unit& unit_;
  const Lines a_, b_;
  const std::int64_t m_, n_, k_;
  Bf16 *left_, *right_;
};

}  // namespace fastsae::cpu
