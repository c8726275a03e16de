// Winner-take-all on the activations of one layer, in training.
#pragma once

#include <string>

#include "models/model.h"

namespace fastsae {

class Winners {
 public:
  explicit Winners(const LayerSpec& spec)
      : shape_(spec.out),
        lifetime_(spec.lifetime),
        of_map_(spec.out.positions() > 1 && (spec.winners == "spatial" || spec.winners == "both")),
        of_batch_(spec.winners == "lifetime" || spec.winners == "both") {}

  bool any() const { return of_map_ || of_batch_; }
  // Whether the rows of a batch compete, so that it cannot be computed in chunks.
  bool of_batch() const { return of_batch_; }

  void declare(Arena& scratch, std::int64_t rows, const std::string& suffix, DType dtype);
  // Removes all but the winners; `weight` is that of the batch's rows.
  void keep(Backend& backend, Tensor activation, const Tensor& weight) const;

 private:
  Shape shape_;
  double lifetime_;
  bool of_map_, of_batch_;
  Tensor* winner_ = nullptr;  // [rows x channels]
  Tensor* turned_ = nullptr;  // [channels x rows] the same
  Tensor* place_ = nullptr;   // [rows x channels] their positions, -1 in rows that lost
};

}  // namespace fastsae
