// Noise on the rows of a batch. One call of the generator gives four words, and a row is cut into four runs of columns:
// word i at column c of the first run is that of column c + i * run. A pass goes over the first run and writes the
// other three on the way; the last ones may be shorter.
#pragma once

#include "core/random.h"
#include "kernels/kernel.h"
#include "kernels/step.h"
#include "math/normal.h"

namespace fastsae {

// What is drawn, and the rows it comes from and goes to.
template <class S>
struct Noise {
  View<const S> clean;    // [rows x cols]
  View<S> noisy;          // [rows x cols]
  const double* numbers;  // [rows] in the data set
  const StepScalars* step;
  std::int64_t cols, run;
  double seed = 0, epoch = 0;

  FS_HD void load() {
    seed = step->seed;
    epoch = step->epoch;
  }
  FS_HD Random4 words(std::int64_t row, std::int64_t col) const {
    return draw(Stream::corruption, seed, epoch, numbers[row], col);
  }
};

// Elements chosen by the upper 31 bits of their word become `low` or `high` by its last bit: masking noise where both
// are 0, else salt-and-pepper noise. A weight says which they are, where there is a place for it.
template <class S>
struct Replace {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  Noise<S> noise;
  std::uint32_t below;  // of 2^31: the share that is replaced
  S low, high;
  View<S> weight;  // [rows x cols], or null
  S chosen, rest;  // its values
  FS_HD void load() { noise.load(); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const Random4 words = noise.words(row, col);
    const std::int64_t col1 = col + noise.run, col2 = col1 + noise.run, col3 = col2 + noise.run;
    if (col1 < noise.cols) noise.noisy(row, col1) = value(row, col1, words.word[1]);
    if (col2 < noise.cols) noise.noisy(row, col2) = value(row, col2, words.word[2]);
    if (col3 < noise.cols) noise.noisy(row, col3) = value(row, col3, words.word[3]);
    return value(row, col, words.word[0]);
  }

 private:
  FS_HD S value(std::int64_t row, std::int64_t col, std::uint32_t word) const {
    const bool is_chosen = word >> 1 < below;
    if (weight.data != nullptr) weight(row, col) = is_chosen ? chosen : rest;
    return is_chosen ? (word & 1u ? high : low) : noise.clean(row, col);
  }
};

// x + deviation * standard normal.
template <class S>
struct AddNormal {
  using Scalar = S;
  static constexpr bool epilogue = false;
  static constexpr Pass pass = Pass::each;
  static constexpr int sums = 0;
  Noise<S> noise;
  S deviation;
  FS_HD void load() { noise.load(); }
  FS_HD S operator()(std::int64_t row, std::int64_t col, S, S*) const {
    const Random4 words = noise.words(row, col);
    const TwoNormals<S> early = two_normals<S>(words.word[0], words.word[1]);
    const TwoNormals<S> late = two_normals<S>(words.word[2], words.word[3]);
    const std::int64_t col1 = col + noise.run, col2 = col1 + noise.run, col3 = col2 + noise.run;
    if (col1 < noise.cols) noise.noisy(row, col1) = value(row, col1, early.second);
    if (col2 < noise.cols) noise.noisy(row, col2) = value(row, col2, late.first);
    if (col3 < noise.cols) noise.noisy(row, col3) = value(row, col3, late.second);
    return value(row, col, early.first);
  }

 private:
  FS_HD S value(std::int64_t row, std::int64_t col, S normal) const {
    return noise.clean(row, col) + deviation * normal;
  }
};

}  // namespace fastsae
