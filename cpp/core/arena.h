// Named tensors declared once and laid out in one aligned allocation.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace fastsae {

using Memory = std::shared_ptr<void>;
using Allocate = std::function<Memory(std::size_t bytes)>;

class Arena {
 public:
  struct Named {
    std::string name;
    Tensor tensor;
    bool shadowed = false;
  };

  // The tensor has no memory until allocate(); the reference stays valid for the arena's life.
  Tensor& declare(std::string name, std::int64_t rows, std::int64_t cols, DType dtype, bool shadowed = false);
  std::size_t bytes() const;
  // Zeroed memory for all that was declared.
  void allocate(const Allocate& allocate);

  const std::deque<Named>& tensors() const { return tensors_; }
  const Tensor* find(const std::string& name) const;

 private:
  std::deque<Named> tensors_;
  Memory memory_;
};

}  // namespace fastsae
