// Marks code that is compiled for the host and for the device from one source.
#pragma once

#if defined(__CUDACC__)
#define FS_HD __host__ __device__ __forceinline__
#else
// Forced inlining lets one formula be compiled into every instruction-set wrapper of cpu/loops.cpp.
#define FS_HD [[gnu::always_inline]] inline
#endif

// Before a small loop whose arrays must stay in registers.
#if defined(__CUDA_ARCH__)
#define FS_UNROLL _Pragma("unroll")
#else
#define FS_UNROLL
#endif
