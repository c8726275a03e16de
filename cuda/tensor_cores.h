// The instructions of tensor cores: thin, and only compiled for the device. A word is what one register takes of a
// factor: one tf32, or two bf16. Which elements the lanes hold is said in tensor_blocks.h.
#pragma once

#include <cstdint>

namespace fastsae::cuda {

struct Tf32Cores {
  static constexpr int depth = 8;  // of the inner dimension, in one instruction

  // Word k of row i, k < 8.
  template <class Staged>
  static __device__ __forceinline__ std::uint32_t word(const Staged& from, int i, int k) {
    std::uint32_t word;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(from.at(i, k)));
    return word;
  }

  // sum[i][j] += a[i] b[j]
  template <class State>
  static __device__ __forceinline__ void multiply(State& lane, int i, int j) {
    const auto& a = lane.a[i];
    const auto& b = lane.b[j];
    auto& sum = lane.sum[i][j];
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

struct Bf16Cores {
  static constexpr int depth = 16;

  // The instruction adds up the products of all its inner elements, so their order is free as long as both factors
  // have the same: word k holds elements k and k + 8, which are in the same banks as the words of tf32.
  template <class Staged>
  static __device__ __forceinline__ std::uint32_t word(const Staged& from, int i, int k) {
    std::uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from.at(i, k + 8)), "f"(from.at(i, k)));
    return word;
  }

  template <class State>
  static __device__ __forceinline__ void multiply(State& lane, int i, int j) {
    const auto& a = lane.a[i];
    const auto& b = lane.b[j];
    auto& sum = lane.sum[i][j];
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
};

}  // namespace fastsae::cuda
