// Turns CUDA errors into the exceptions that Python sees.
#pragma once

#include <cuda_runtime.h>

#include "core/error.h"

namespace fastsae::cuda {

// The macro passes only text and value.
inline void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // what is not sticky is forgotten, so that the next call starts clean
  throw DeviceError(text(call, ": ", cudaGetErrorString(error)));
}

}  // namespace fastsae::cuda

#define FS_CUDA(call) ::fastsae::cuda::check((call), #call)
