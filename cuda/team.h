// A team of threads that works in phases: every thread runs a phase before any thread runs the next one.
// Block algorithms are templates over it. On the device a team is a block; on the host one thread plays all its
// members, so that the algorithms are tested where there is no GPU.
//
// phase(run)          run(member, state) for all members, then a barrier
// each(run)           the same without the barrier
// warp(run)           run(lanes) for each 32 members that act together: what it does with them is a tensor core's
// copy<bytes>(...)    begins a copy of 4, 8 or 16 bytes into shared memory; those from `valid` on become zero
// commit()            ends a group of copies
// arrive<later>()     a barrier that waits for all groups but the `later` latest
#pragma once

#include <cstdint>

#include "core/host_device.h"

#if !defined(__CUDACC__)
#include <cstring>
#include <deque>
#include <stdexcept>
#include <utility>
#include <vector>
#endif

namespace fastsae::cuda {

// Members of any block may count in one place: the sum does not depend on their order.
FS_HD void add_one(std::uint32_t* to) {
#if defined(__CUDA_ARCH__)
  atomicAdd(to, 1u);
#else
  __atomic_fetch_add(to, 1u, __ATOMIC_RELAXED);
#endif
}

// State is what a member keeps from one phase to the next.
#if defined(__CUDACC__)
template <class State>
class BlockTeam {
 public:
  template <class Run>
  __device__ __forceinline__ void phase(const Run& run) {
    each(run);
    __syncthreads();
  }
  template <class Run>
  __device__ __forceinline__ void each(const Run& run) {
    run(static_cast<int>(threadIdx.x), state_);
  }
  template <class Run>
  __device__ __forceinline__ void warp(const Run& run) {
    run(state_);
  }
  template <int bytes>
  __device__ __forceinline__ void copy(void* to, const void* from, int valid) {
    const auto shared = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
    if constexpr (bytes == 16)  // .cg: not through the first cache
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(valid)
                   : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(from), "n"(bytes),
                   "r"(valid)
                   : "memory");
  }
  __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  template <int later>
  __device__ __forceinline__ void arrive() {
    asm volatile("cp.async.wait_group %0;" ::"n"(later) : "memory");
    __syncthreads();
  }

 private:
  State state_{};
};
#else
// Copies as late as the device may make them: what is read too early is not there.
class LateCopies {
 public:
  void start(void* to, const void* from, int bytes, int valid) {
    const auto places = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from);
    if (places % bytes != 0) throw std::logic_error("a copy that a device would refuse: it is not aligned");
    open_.push_back({to, from, bytes, valid});
  }
  void commit() {
    groups_.push_back(std::move(open_));
    open_.clear();
  }
  void finish_all_but(std::size_t later) {
    for (; groups_.size() > later; groups_.pop_front()) {
      for (const Copy& copy : groups_.front()) {
        std::memcpy(copy.to, copy.from, copy.valid);
        std::memset(static_cast<char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
      }
    }
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int bytes, valid;
  };
  std::vector<Copy> open_;
  std::deque<std::vector<Copy> > groups_;
};

template <class State>
class SerialTeam {
 public:
  explicit SerialTeam(int size) : states_(size) {}
  template <class Run>
  void phase(const Run& run) {
    each(run);
  }
  template <class Run>
  void each(const Run& run) {
    for (int member = 0; member < static_cast<int>(states_.size()); ++member) run(member, states_[member]);
  }
  template <class Run>
  void warp(const Run& run) {
    for (std::size_t first = 0; first < states_.size(); first += 32) run(&states_[first]);
  }
  template <int bytes>
  void copy(void* to, const void* from, int valid) {
    copies_.start(to, from, bytes, valid);
  }
  void commit() { copies_.commit(); }
  template <int later>
  void arrive() {
    copies_.finish_all_but(later);
  }

 private:
  std::vector<State> states_;
  LateCopies copies_;
};
#endif

}  // namespace fastsae::cuda
