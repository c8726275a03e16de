// A team of threads that works in phases: every thread runs a phase before any thread runs the next one.
// Block algorithms are templates over it. On the device a team is a block; on the host one thread plays all its
// members, so that the algorithms are tested where there is no GPU.
#pragma once

#include <cstring>

#include "core/host_device.h"

#if !defined(__CUDACC__)
#include <vector>
#endif

namespace fastsae::cuda {

// State is what a member keeps from one phase to the next.
#if defined(__CUDACC__)
template <class State>
class BlockTeam {
 public:
  template <class Phase>
  __device__ __forceinline__ void phase(const Phase& run) {
    run(static_cast<int>(threadIdx.x), state_);
    __syncthreads();
  }

 private:
  State state_{};
};

// A member's copies into shared memory that run while it works; they are there after wait() and the end of a phase.
class Copies {
 public:
  template <int kBytes>
  __device__ __forceinline__ void start(void* shared, const void* global) {
    const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
  }
  __device__ __forceinline__ void wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
};
#else
template <class State>
class SerialTeam {
 public:
  explicit SerialTeam(int size) : states_(size) {}
  template <class Phase>
  void phase(const Phase& run) {
    for (int member = 0; member < static_cast<int>(states_.size()); ++member) run(member, states_[member]);
  }

 private:
  std::vector<State> states_;
};

// Copies as late as they may come.
class Copies {
 public:
  template <int kBytes>
  void start(void* shared, const void* global) {
    begun_.push_back({shared, global, kBytes});
  }
  void wait() {
    for (const Begun& copy : begun_) std::memcpy(copy.to, copy.from, copy.bytes);
    begun_.clear();
  }

 private:
  struct Begun {
    void* to;
    const void* from;
    std::size_t bytes;
  };
  std::vector<Begun> begun_;
};
#endif

}  // namespace fastsae::cuda
