// What holds for the whole process, whatever engines it has.
#pragma once

namespace fastsae {

// Threads of CPU work: see cpu/pool.h.
int num_threads();
void set_num_threads(int count);

// The instruction set and the BLAS that CPU work uses, for reports.
const char* isa_name();
const char* blas_name();

}  // namespace fastsae
