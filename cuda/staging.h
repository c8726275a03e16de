// Pinned memory on the way to the device. Filling it waits for nothing but the copies of long ago.
#pragma once

#include <array>

#include "handles.h"
#include "ring.h"

namespace fastsae::cuda {

class Staging {
 public:
  Staging() : ring_(kBytes, kSlots) {
    void* memory = nullptr;
    FS_CUDA(cudaMallocHost(&memory, kBytes));
    memory_.reset(memory);
    for (Event& event : read_) event = make_event();
  }

  std::size_t largest() const { return ring_.largest(); }

  // Calls fill(memory, bytes), which puts at most `wanted` bytes there and tells the stream to copy them, and gives
  // back how many they are.
  template <class Fill>
  std::size_t send(std::size_t wanted, cudaStream_t stream, const Fill& fill) {
    const Ring::Part part = ring_.take(wanted, [&](int slot) {
      FS_CUDA(cudaEventSynchronize(read_[static_cast<std::size_t>(slot)].get()));
    });
    fill(static_cast<std::byte*>(memory_.get()) + part.begin, part.bytes);
    FS_CUDA(cudaEventRecord(read_[static_cast<std::size_t>(part.slot)].get(), stream));
    return part.bytes;
  }

 private:
  static constexpr std::size_t kBytes = std::size_t{32} << 20;
  static constexpr int kSlots = 256;  // more than the uploads of all steps in flight
  Pinned memory_;
  Ring ring_;
  std::array<Event, kSlots> read_;
};

}  // namespace fastsae::cuda
