// What a device can do with codes that are mostly zero: rows x latents is never written.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "kernels/step.h"
#include "math/elementary.h"
#include "math/optimizers.h"

namespace fastsae {

// The elements of a matrix [rows x latents] that matter, row after row and by column in each.
struct Code {
  std::int64_t rows = 0;
  Tensor starts;             // [1 x rows + 1] of i32: where each row begins; none where all have as many
  std::int64_t per_row = 0;  // then so many
  Tensor latents;            // [1 x capacity] of i32
  Tensor values;             // [1 x capacity]: what multiplies a latent's row of the decoder; 0 does not
  FS_HD std::int64_t begin(std::int64_t row) const {
    return starts.exists() ? starts.as<std::int32_t>()[row] : row * per_row;
  }
};

// The largest elements of each row among latents that have not fired for more than `limit` rows.
struct DeadSelection {
  Tensor x, weight, bias, scale;
  Tensor since;  // [1 x latents] of f64: rows since each latent fired
  double limit;
  std::int64_t k;  // of each row, or as many as are dead
  Code code;       // of capacity rows * k
  double* dead;    // how many latents
};

// Of a tile of rows x latents that is written down, the elements above the threshold and those in a window around it.
struct Collection {
  Tensor z;                 // [rows of the tile x latents]
  Tensor threshold;         // [1 x latents], or none: 0
  double half_width = 0;    // of the window; 0 without one
  std::int64_t first = 0;   // row of the codes that the tile begins with; the rows before are there
  Code above, near;         // of whole batches, values z; `near` where there is a window
  std::int64_t most_above;  // of the tile
  std::int64_t most_near;
  double* listed;  // on the device: 1 if there are no more, else 0
};

// Which elements of a tile are collected.
template <class S>
struct CollectionWindow {
  const S* threshold;  // [latents], or null: 0
  S half_width;
  FS_HD explicit CollectionWindow(const Collection& all)
      : threshold(all.threshold.as<S>()), half_width(static_cast<S>(all.half_width)) {}
  FS_HD S bar(std::int64_t col) const { return threshold != nullptr ? threshold[col] : S(0); }
  // NaN is above, and stays visible.
  FS_HD static bool is_above(S z, S bar) { return !(z <= bar); }
  FS_HD bool is_near(S z, S bar) const { return absolute(z - bar) < half_width; }
};

// Latents [0, ends[0]), [0, ends[1]), ... each decode on their own; the last one is all.
struct Prefixes {
  static constexpr int kMost = 16;
  std::int32_t count = 1;
  std::int32_t ends[kMost] = {};
  double weights[kMost] = {};  // of the errors
};

// y_g = bias + extra + sum of value * weight row over the latents of prefix g; e_g = y_g - target.
struct Decoding {
  Code code;
  Tensor weight;  // [latents x outputs]
  Tensor bias;    // [1 x outputs], or none
  Tensor extra;   // [rows x outputs], or none
  Prefixes prefixes;
  Tensor target = {};              // [rows x outputs]; none: `errors` gets y, and nothing below is made
  Tensor row_weight = {};          // [1 x rows]
  const double* factor = nullptr;  // on the device
  // [rows * slots x outputs]: slot first_slot + g of a row gets the gradient by what latents of that prefix add,
  // sum over h >= g of factor * row weight * weights[h] * e_h.
  Tensor errors = {};
  std::int64_t slots = 1, first_slot = 0;
  Tensor slopes = {};       // [1 x capacity]: gradient by each value; or none
  Code more = {};           // elements that decode to nothing, whose slopes are asked for too
  Tensor more_slopes = {};  // [1 x its capacity], or none
  Tensor losses = {};       // [1 x rows] of f64: row weight * sum over g of weights[g] |e_g|^2
  Tensor last_losses = {};  // [1 x rows] of f64: row weight * |e_last|^2; or none
  Tensor residual = {};     // [rows x outputs]: - e_last; or none
};

// The elements of a code as the gradient sees them.
struct CodeGradient {
  Code code;
  Tensor slopes;
  Prefixes prefixes;
  std::int64_t first_slot = 0;
  bool keep_zeros = false;  // whether a value of 0 passes a gradient on
};

// The same elements by latent; in each by code, then by row.
struct LatentIndex {
  Tensor begins;  // [1 x latents + 1] of i32
  Tensor slots;   // [1 x capacity] of i32: row * slots of a row + slot
  Tensor values;  // [1 x capacity]
  Tensor slopes;  // [1 x capacity]
  Tensor
      segments;  // [2 capacity / kSegment + 1 x 2] of i32: of a long list's pieces, latent and first element
  Tensor partials;  // [rows of segments x outputs + features]: their sums
  static constexpr std::int64_t kSegment = 512;
};

// Where the gradient of each latent's rows comes from: sums over an index, matrices, or both.
struct LatentRows {
  LatentIndex index;
  std::int64_t slots = 1;            // of a row
  Tensor inputs;                     // [rows x features]
  Tensor errors;                     // [rows * slots x outputs]
  Tensor encoder_gradient;           // [latents x features], or none
  Tensor decoder_gradient;           // [latents x outputs], or none
  const double* matrices = nullptr;  // on the device, 0 if those two hold nothing; or null
  Tensor pull;     // [1 x latents] of f64, or none: W_dec row j adds pull[j] times itself to its gradient
  Tensor encoder;  // [latents x features]
  Tensor decoder;  // [latents x outputs]
  bool project = false;  // the decoder's gradient leaves out what is parallel to its row
  FS_HD bool has_matrices() const {
    return encoder_gradient.exists() && (matrices == nullptr || *matrices != 0);
  }
};

// How a matrix is updated.
struct MatrixUpdate {
  int optimizer = 0;  // place in OptimizerSteps
  OptimizerConstants constants = {};
  // Moments, as many as it has: of the matrix's type, or in few bits (math/moments.h), bf16 or u8.
  Tensor first, second;
  Tensor first_scale, second_scale;  // of u8: [rows x blocks of columns]
};

struct LatentUpdate {
  MatrixUpdate encoder, decoder;
  bool unit_norm = false;  // the decoder's rows are then scaled to length 1
  const StepScalars* step = nullptr;
  const StepLog* log = nullptr;
};

}  // namespace fastsae
