// Reused scratch memory: a call takes a buffer from the free list and gives it back, so that many threads can
// work at once and a steady state allocates nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace fastsae::cpu {

// Room for so many numbers that begin at a multiple of 64 bytes, in doubles.
template <class S>
constexpr std::size_t doubles_for(std::int64_t count) {
  return static_cast<std::size_t>(count) * sizeof(S) / sizeof(double) + 9;
}
template <class S>
S* aligned(double* memory) {
  return reinterpret_cast<S*>((reinterpret_cast<std::uintptr_t>(memory) + 63) / 64 * 64);
}

class Scratch {
 public:
  class Lease {
   public:
    Lease(Scratch& owner, std::size_t doubles) : owner_(owner), buffer_(owner.take()) {
      if (buffer_.size() < doubles) buffer_.resize(doubles);
    }
    ~Lease() { owner_.give(std::move(buffer_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    double* data() { return buffer_.data(); }

   private:
    Scratch& owner_;
    std::vector<double> buffer_;
  };

 private:
  // Who finds the list taken goes without: in a forked child nobody may be there to give it back.
  std::vector<double> take() {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock || free_.empty()) return {};
    std::vector<double> buffer = std::move(free_.back());
    free_.pop_back();
    return buffer;
  }
  void give(std::vector<double> buffer) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock) return;
    try {
      free_.push_back(std::move(buffer));
    } catch (const std::bad_alloc&) {  // then the buffer is freed
    }
  }

  std::mutex mutex_;
  std::vector<std::vector<double>> free_;
};

}  // namespace fastsae::cpu
