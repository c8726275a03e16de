// A kernel over an output in blocks, and its sums.
#pragma once

#include <algorithm>

#include "backend/backend.h"
#include "cpu/loops.h"
#include "cpu/scratch.h"

namespace fastsae::cpu {

// One pass over an output: which loop, and the partial sums of each block until they are added in block
// order.
class Summing {
 public:
  Summing(const Kernel* kernel, const Tensor& out, std::int64_t row_parts, std::int64_t col_parts,
          Scratch& scratch, Sums sums)
      : kernel_(kernel),
        out_(out),
        row_parts_(row_parts),
        col_parts_(col_parts),
        sums_(sums),
        lease_(scratch, partials()) {
    if (kernel_ != nullptr) loop_ = find_loop(*kernel_);
  }

  void run(Block block, std::int64_t row_part, std::int64_t col_part) {
    if (kernel_ == nullptr) return;
    if (kernel_->pass == Pass::col_sum) {
      loop_(kernel_->bytes, out_, block, lease_.data() + row_part * kernel_->sums * out_.cols, out_.cols);
    } else if (kernel_->pass == Pass::row_sum) {
      loop_(kernel_->bytes, out_, block, lease_.data() + col_part, col_parts_);
    } else {
      loop_(kernel_->bytes, out_, block, nullptr, 0);
    }
  }

  void finish() {
    if (kernel_ == nullptr || kernel_->pass == Pass::each || !sums_.into.exists()) return;
    double* into = sums_.into.as<double>();
    const bool columns = kernel_->pass == Pass::col_sum;
    const std::int64_t count = columns ? kernel_->sums * out_.cols : out_.rows;
    const std::int64_t parts = columns ? row_parts_ : col_parts_;
    const double* partial = lease_.data();
    if (!sums_.accumulate) std::fill_n(into, count, 0.0);
    if (columns) {
      for (std::int64_t part = 0; part < parts; ++part, partial += count) {
        for (std::int64_t i = 0; i < count; ++i) into[i] += partial[i];
      }
    } else {
      for (std::int64_t i = 0; i < count; ++i) {
        for (std::int64_t part = 0; part < parts; ++part) into[i] += *partial++;
      }
    }
  }

 private:
  std::size_t partials() const {
    if (kernel_ == nullptr || kernel_->pass == Pass::each) return 0;
    const std::int64_t count =
        kernel_->pass == Pass::col_sum ? row_parts_ * kernel_->sums * out_.cols : out_.rows * col_parts_;
    return static_cast<std::size_t>(count);
  }

  const Kernel* kernel_;
  const Tensor& out_;
  const std::int64_t row_parts_, col_parts_;
  const Sums sums_;
  Loop loop_ = nullptr;
  Scratch::Lease lease_;
};

}  // namespace fastsae::cpu
