// Sparse codes row by row: their decoder, its loss and the gradient by each of their elements.
#pragma once

#include "backend/sparse.h"
#include "cpu/partition.h"

namespace fastsae::cpu {

// One range of the code's rows.
void decode(const Decoding& decoding, Range rows);
// Of one range of rows.
void write_code(const Code& code, const Tensor& rows, Range range);
void row_norms(const Tensor& of, const Tensor& norms, Range rows);

}  // namespace fastsae::cpu
