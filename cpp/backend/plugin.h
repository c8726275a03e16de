// The symbols of libfastsae_cuda.so. Both libraries must be of one build: the contract is a hash of the headers
// that they share.
#pragma once

#include <string>

#include "backend/backend.h"
#include "fastsae_contract.h"  // made by CMake: FASTSAE_CONTRACT, FASTSAE_HAS_CUDA

namespace fastsae {

// fastsae_cuda_backend: a new backend, which the caller owns; DeviceError if the contract differs.
using MakeCudaBackend = Backend* (*)(const char* contract, int device, Precision precision, const Poll* poll);
// fastsae_cuda_devices: how many devices can be used; 0 with the reason.
using CountCudaDevices = int (*)(std::string* reason);
// fastsae_cuda_blas: the name of the library of large products, or nothing.
using NameCudaBlas = void (*)(std::string* name);

}  // namespace fastsae
