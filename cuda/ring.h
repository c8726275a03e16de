// Which part of a block of pinned memory the next upload may fill, without a word of CUDA. Parts go round; the device
// reads them in the order they were handed out, so when one has been read, all before it have.
#pragma once

#include <algorithm>
#include <cstddef>
#include <deque>

namespace fastsae::cuda {

class Ring {
 public:
  struct Part {
    std::size_t begin, bytes;
    int slot;  // what marks that the device has read it
  };

  Ring(std::size_t bytes, int slots) : bytes_(bytes), slots_(slots) {}

  // No part is larger, so that others are filled while one is read.
  std::size_t largest() const { return bytes_ / 4; }

  // A part of at most `wanted` bytes. Where it is in use, wait(slot) returns once the device has read that part.
  template <class Wait>
  Part take(std::size_t wanted, const Wait& wait) {
    const std::size_t bytes = std::min(wanted, largest());
    const std::size_t room = (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    if (next_ + room > bytes_) next_ = 0;
    const Part part{next_, bytes, next_slot_};
    // The latest part in the way; with it, all that were handed out before it are free.
    std::size_t done = static_cast<int>(used_.size()) == slots_ ? 1 : 0;
    for (std::size_t i = done; i < used_.size(); ++i) {
      if (used_[i].begin < next_ + room && next_ < used_[i].begin + used_[i].bytes) done = i + 1;
    }
    if (done > 0) {
      wait(used_[done - 1].slot);
      used_.erase(used_.begin(), used_.begin() + static_cast<std::ptrdiff_t>(done));
    }
    used_.push_back({next_, room, next_slot_});
    next_ += room;
    next_slot_ = (next_slot_ + 1) % slots_;
    return part;
  }

 private:
  static constexpr std::size_t kAlignment = 256;
  const std::size_t bytes_;
  const int slots_;
  std::size_t next_ = 0;
  int next_slot_ = 0;
  std::deque<Part> used_;  // in the order they were handed out
};

}  // namespace fastsae::cuda
