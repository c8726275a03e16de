// What is done to the input of a step (Vincent et al., JMLR 11, 2010): noise that is fresh in each epoch. The target
// stays clean, and inference draws nothing.
#pragma once

#include "models/model.h"

namespace fastsae {

class Corruption {
 public:
  explicit Corruption(const ModelSpec& spec);

  bool exists() const { return spec_.kind != "none"; }
  // Whether the loss weighs corrupted elements and the others differently.
  bool has_emphasis() const { return spec_.emphasis != 1 || spec_.rest != 1; }

  void declare_scratch(Arena& scratch, std::int64_t rows, bool shadowed);
  // Makes the input of this batch, and the weights of its elements.
  void draw(Backend& backend, const Batch& batch, const StepScalars* step) const;
  Tensor input(const Batch& batch) const { return input_->slice_rows(0, batch.rows()); }
  // [rows x n_features] in the order of the user's rows.
  Tensor emphasis(const Batch& batch) const { return emphasis_->slice_rows(0, batch.rows()); }

 private:
  const CorruptionSpec spec_;
  const std::int64_t n_features_;
  const DType dtype_;
  Tensor* drawn_ = nullptr;  // written by a pass that writes no shadow
  Tensor* input_ = nullptr;  // the same tensor where none is wanted
  Tensor* emphasis_ = nullptr;
};

}  // namespace fastsae
