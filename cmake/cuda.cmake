# libfastsae_cuda.so: the CUDA backend, opened at run time where there is a driver. No CUDA library is linked but the
# static run-time.
set(FASTSAE_CUDA "AUTO" CACHE STRING "Build the CUDA backend: AUTO (where nvcc is found), ON or OFF")
set_property(CACHE FASTSAE_CUDA PROPERTY STRINGS AUTO ON OFF)

set(FASTSAE_HAS_CUDA 0)
if(NOT FASTSAE_CUDA STREQUAL "OFF" AND NOT FASTSAE_SANITIZE)
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 89-real 90a-real 90-virtual)
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(FASTSAE_HAS_CUDA 1)
  elseif(FASTSAE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "FASTSAE_CUDA=ON: no CUDA compiler was found")
  endif()
endif()
if(FASTSAE_HAS_CUDA AND CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION}: expected 12.8 or newer, or FASTSAE_CUDA=OFF")
endif()
if(FASTSAE_HAS_CUDA)
  message(STATUS "fastsae: CUDA backend is built for ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "fastsae: CUDA backend is not built (FASTSAE_CUDA=${FASTSAE_CUDA})")
endif()

# Both libraries must agree on every header that they share, and on the compiler.
file(GLOB contract_headers CONFIGURE_DEPENDS cpp/core/*.h cpp/math/*.h cpp/kernels/*.h cpp/backend/*.h)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${contract_headers})
set(contract "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
foreach(header ${contract_headers})
  file(SHA256 "${header}" hash)
  string(APPEND contract " ${hash}")
endforeach()
string(SHA256 contract "${contract}")
file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/generated/fastsae_contract.h" CONTENT [[
#pragma once
#define FASTSAE_CONTRACT "@contract@"
#define FASTSAE_HAS_CUDA @FASTSAE_HAS_CUDA@
]] @ONLY)

if(FASTSAE_HAS_CUDA)
  add_library(fastsae_cuda MODULE
    cuda/cuda_backend.cu cuda/images.cu cuda/latents.cu cuda/map.cu cuda/product.cu cuda/rows.cu cuda/select.cu
    cuda/small.cu cuda/sparse.cu
    cuda/tensor_product.cu cuda/cublaslt.cpp cpp/core/arena.cpp cpp/core/library.cpp)
  set_target_properties(fastsae_cuda PROPERTIES
    CUDA_STANDARD 20 CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
  target_include_directories(fastsae_cuda PRIVATE cpp cuda "${CMAKE_BINARY_DIR}/generated")
  target_compile_options(fastsae_cuda PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-Xfatbin=-compress-all --threads=0 -Werror=all-warnings -Xcompiler=-Wall>)
  target_link_options(fastsae_cuda PRIVATE "LINKER:--version-script=${CMAKE_SOURCE_DIR}/cuda/exports.map")
  install(TARGETS fastsae_cuda LIBRARY DESTINATION fastsae)
endif()
