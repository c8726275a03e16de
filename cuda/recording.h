// Steps as graphs: what a stream is given is recorded, and a number on the device may choose between two branches whenever
// the graph is launched. For CUDA 12.8 or newer.
#pragma once

#include <cuda_runtime.h>

#include <functional>

#include "check.h"

namespace fastsae::cuda {

inline constexpr int kOldestToBranch = 12080;  // driver

// What `body` puts into the stream, as a graph of its own or as that of a branch.
inline cudaGraph_t record(cudaStream_t stream, cudaGraph_t branch, const std::function<void()>& body) {
  constexpr auto mode = cudaStreamCaptureModeThreadLocal;
  FS_CUDA(branch == nullptr ? cudaStreamBeginCapture(stream, mode)
                            : cudaStreamBeginCaptureToGraph(stream, branch, nullptr, nullptr, 0, mode));
  cudaGraph_t graph = nullptr;
  try {
    body();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph);
    if (graph != nullptr && branch == nullptr) cudaGraphDestroy(graph);
    (void)cudaGetLastError();
    throw;
  }
  FS_CUDA(cudaStreamEndCapture(stream, &graph));
  return graph;
}

// The graph that a stream is recording into, and what it has got last.
struct Recording {
  cudaGraph_t graph = nullptr;
  const cudaGraphNode_t* latest = nullptr;
  std::size_t count = 0;

  explicit Recording(cudaStream_t stream) {
    cudaStreamCaptureStatus status;
#if CUDART_VERSION >= 13000
    FS_CUDA(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, &latest, nullptr, &count));
#else
    FS_CUDA(cudaStreamGetCaptureInfo_v2(stream, &status, nullptr, &graph, &latest, &count));
#endif
  }
  cudaGraphNode_t add(cudaGraphNodeParams& node) const {
    cudaGraphNode_t made = nullptr;
#if CUDART_VERSION >= 13000
    FS_CUDA(cudaGraphAddNode(&made, graph, latest, nullptr, count, &node));
#else
    FS_CUDA(cudaGraphAddNode(&made, graph, latest, count, &node));
#endif
    return made;
  }
};

static __global__ void __launch_bounds__(1)
    choose_kernel(cudaGraphConditionalHandle choice, const double* number) {
  cudaGraphSetConditional(choice, *number != 0 ? 1 : 0);
}

// Two graphs, of which a launch runs the first, or the second if the number is 0, before whatever follows.
struct Branches {
  cudaGraph_t yes, no;
};
inline Branches add_branches(const double* number, cudaStream_t stream) {
  cudaGraphConditionalHandle choice;
  FS_CUDA(cudaGraphConditionalHandleCreate(&choice, Recording(stream).graph));
  choose_kernel<<<1, 1, 0, stream>>>(choice, number);
  FS_CUDA(cudaGetLastError());
  cudaGraphNodeParams node{};
  node.type = cudaGraphNodeTypeConditional;
  node.conditional.handle = choice;
  node.conditional.type = cudaGraphCondTypeIf;
  node.conditional.size = 2;
  cudaGraphNode_t made = Recording(stream).add(node);
#if CUDART_VERSION >= 13000
  FS_CUDA(cudaStreamUpdateCaptureDependencies(stream, &made, nullptr, 1, cudaStreamSetCaptureDependencies));
#else
  FS_CUDA(cudaStreamUpdateCaptureDependencies(stream, &made, 1, cudaStreamSetCaptureDependencies));
#endif
  return {node.conditional.phGraph_out[0], node.conditional.phGraph_out[1]};
}

}  // namespace fastsae::cuda
