// Owners of a stream, an event, a graph and pinned memory: move-only, freed once.
#pragma once

#include <cuda_runtime.h>

#include <memory>

#include "check.h"

namespace fastsae::cuda {

struct FreeStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
struct FreeEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
struct FreeGraph {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
struct FreePinned {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};

using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, FreeStream>;
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, FreeEvent>;
using Graph = std::unique_ptr<std::remove_pointer_t<cudaGraphExec_t>, FreeGraph>;
using Pinned = std::unique_ptr<void, FreePinned>;

inline Stream make_stream() {
  cudaStream_t stream;
  FS_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  return Stream(stream);
}
inline Event make_event() {
  cudaEvent_t event;
  FS_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  return Event(event);
}

}  // namespace fastsae::cuda
