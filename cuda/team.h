// A team of threads that works in phases: every thread runs a phase before any thread runs the next one.
// Block algorithms are templates over it. On the device a team is a block; on the host one thread plays all its
// members, so that the algorithms are tested where there is no GPU.
#pragma once

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
#endif

}  // namespace fastsae::cuda
