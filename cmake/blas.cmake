# The one seam for the BLAS. It is never linked: the program opens it on first use, by path, as a private copy.
#   FASTSAE_BLAS_LIBRARY      a file name beside the module, or an absolute path
#   FASTSAE_BLAS_PREFIX       what stands before cblas_sgemm
#   FASTSAE_BLAS_SET_THREADS  the function that holds it at one thread, or empty
set(private_blas "${CMAKE_BINARY_DIR}/libfastsae_blas.so")
set(FASTSAE_BLAS_PREFIX "")
set(FASTSAE_BLAS_SET_THREADS "")
set(blas_license "")

function(fastsae_python_says result code)
  find_package(Python REQUIRED COMPONENTS Interpreter)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "${code}" OUTPUT_VARIABLE out RESULT_VARIABLE failed
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    message(FATAL_ERROR "FASTSAE_BLAS=${FASTSAE_BLAS}: its PyPI package is not installed for ${Python_EXECUTABLE}")
  endif()
  set(${result} "${out}" PARENT_SCOPE)
endfunction()

if(FASTSAE_BLAS STREQUAL "OpenBLAS")
  # PyPI: scipy-openblas32.
  fastsae_python_says(openblas "import scipy_openblas32 as b; print(b.get_lib_dir() + '|' + b.get_library(fullname=True))")
  string(REPLACE "|" ";" openblas "${openblas}")
  list(GET openblas 0 openblas_folder)
  list(GET openblas 1 openblas_file)
  file(COPY_FILE "${openblas_folder}/${openblas_file}" "${private_blas}" ONLY_IF_DIFFERENT)
  file(GLOB_RECURSE blas_license "${openblas_folder}/../../scipy_openblas32-*.dist-info/LICENSE*")
  set(FASTSAE_BLAS_LIBRARY "libfastsae_blas.so")
  set(FASTSAE_BLAS_PREFIX "scipy_")
  set(FASTSAE_BLAS_SET_THREADS "scipy_openblas_set_num_threads")
elseif(FASTSAE_BLAS STREQUAL "MKL")
  # PyPI: mkl-static; the sequential interface, bound into one library that shows what we call.
  fastsae_python_says(mkl_core "import importlib.metadata as m
print(*[f.locate().resolve() for f in m.files('mkl-static') if f.name == 'libmkl_core.a'])")
  get_filename_component(mkl "${mkl_core}" DIRECTORY)
  file(WRITE "${CMAKE_BINARY_DIR}/blas.map" "{ global: cblas_sgemm; cblas_dgemm; cblas_sgemv; cblas_dgemv; local: *; };\n")
  execute_process(
    COMMAND ${CMAKE_CXX_COMPILER} -shared -o "${private_blas}" -Wl,-u,cblas_sgemm -Wl,-u,cblas_dgemm
            -Wl,-u,cblas_sgemv -Wl,-u,cblas_dgemv
            -Wl,--version-script=${CMAKE_BINARY_DIR}/blas.map -Wl,--start-group "${mkl}/libmkl_intel_lp64.a"
            "${mkl}/libmkl_sequential.a" "${mkl_core}" -Wl,--end-group -lpthread -lm -ldl
    COMMAND_ERROR_IS_FATAL ANY)
  set(FASTSAE_BLAS_LIBRARY "libfastsae_blas.so")
elseif(FASTSAE_BLAS STREQUAL "Accelerate")
  set(FASTSAE_BLAS_LIBRARY "/System/Library/Frameworks/Accelerate.framework/Accelerate")
elseif(FASTSAE_BLAS STREQUAL "System")
  find_library(system_blas NAMES openblas cblas blas REQUIRED)
  get_filename_component(FASTSAE_BLAS_LIBRARY "${system_blas}" REALPATH)
  execute_process(COMMAND ${CMAKE_NM} -D "${FASTSAE_BLAS_LIBRARY}" OUTPUT_VARIABLE symbols)
  if(symbols MATCHES "openblas_set_num_threads")
    set(FASTSAE_BLAS_SET_THREADS "openblas_set_num_threads")
  endif()
else()
  message(FATAL_ERROR "FASTSAE_BLAS: expected OpenBLAS, MKL, Accelerate or System, got '${FASTSAE_BLAS}'")
endif()
message(STATUS "fastsae: BLAS is ${FASTSAE_BLAS} (${FASTSAE_BLAS_LIBRARY})")

file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/generated/fastsae_blas_config.h" CONTENT [[
#pragma once
#define FASTSAE_BLAS_NAME "@FASTSAE_BLAS@"
#define FASTSAE_BLAS_LIBRARY "@FASTSAE_BLAS_LIBRARY@"
#define FASTSAE_BLAS_PREFIX "@FASTSAE_BLAS_PREFIX@"
#define FASTSAE_BLAS_SET_THREADS "@FASTSAE_BLAS_SET_THREADS@"
]] @ONLY)

function(fastsae_install_blas destination)
  if(EXISTS "${private_blas}")
    install(FILES "${private_blas}" DESTINATION ${destination})
  endif()
  if(blas_license)
    list(GET blas_license 0 license)
    install(FILES "${license}" DESTINATION ${destination} RENAME LICENSE.openblas.txt)
  endif()
endfunction()
