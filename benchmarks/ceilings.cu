// What this GPU can do: bandwidth of memory and of L2, row gathers, and the cost of launches, graph nodes and grid
// barriers. Prints one JSON line. gpu.py compiles and runs it.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace {

constexpr int kRounds = 7;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds of one call of `work` on the device: the median of rounds of `calls` calls between two events.
double device_seconds(int calls, const std::function<void()>& work) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  work();
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    check(cudaEventRecord(begin), "record");
    for (int i = 0; i < calls; ++i) work();
    check(cudaEventRecord(end), "record");
    check(cudaEventSynchronize(end), "wait");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "elapsed");
    rounds.push_back(milliseconds * 1e-3 / calls);
  }
  check(cudaGetLastError(), "launch");
  return median(rounds);
}

// Reads all of `data` `passes` times; the sum keeps the reads alive.
__global__ void __launch_bounds__(256)
    read_kernel(const float4* data, std::int64_t count, int passes, float* sink) {
  float sum = 0;
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (int pass = 0; pass < passes; ++pass) {
#pragma unroll 8
    for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
      const float4 x = __ldcg(data + i);  // past the L1
      sum += x.x + x.y + x.z + x.w;
    }
  }
  if (sum == -1.0f) *sink = sum;  // never: the data are positive
}

__global__ void __launch_bounds__(256) fill_kernel(float4* data, std::int64_t count) {
  const std::int64_t stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    const float x = static_cast<float>((i * 2654435761u >> 8) & 0xffff) * 1e-5f + 0.1f;
    data[i] = make_float4(x, x + 1, x + 2, x + 3);
  }
}

// One warp reads one row after another, each at a place that a hash gives.
__global__ void __launch_bounds__(256)
    gather_kernel(const float4* data, std::uint32_t rows, int row_vectors, int reads, float* sink) {
  const std::uint32_t warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  float sum = 0;
  for (int i = 0; i < reads; ++i) {
    std::uint32_t hash = (warp * 9781u + i) * 2654435761u;
    hash ^= hash >> 15;
    const float4* row = data + static_cast<std::int64_t>((hash * 2246822519u) % rows) * row_vectors;
    for (int k = static_cast<int>(lane); k < row_vectors; k += 32) {
      const float4 x = __ldcg(row + k);
      sum += x.x + x.y + x.z + x.w;
    }
  }
  if (sum == -1.0f) *sink = sum;
}

__global__ void empty_kernel() {}

__global__ void __launch_bounds__(256) barrier_kernel(int barriers) {
  for (int i = 0; i < barriers; ++i) cooperative_groups::this_grid().sync();
}

struct Machine {
  int multiprocessors = 0;
  float* sink = nullptr;
  float4* data = nullptr;
  std::int64_t bytes = 0;
};

double read_bandwidth(const Machine& m, std::int64_t bytes) {
  // About 4 GB in all, so that one launch is long beside its start.
  const int passes = static_cast<int>(std::max<std::int64_t>(1, (std::int64_t{4} << 30) / bytes));
  const double seconds = device_seconds(
      3, [&] { read_kernel<<<m.multiprocessors * 8, 256>>>(m.data, bytes / 16, passes, m.sink); });
  return static_cast<double>(bytes) * passes / seconds;
}

double copy_bandwidth(const Machine& m) {
  const std::int64_t half = m.bytes / 2;
  void* to = reinterpret_cast<std::byte*>(m.data) + half;
  const double seconds =
      device_seconds(5, [&] { check(cudaMemcpyAsync(to, m.data, half, cudaMemcpyDeviceToDevice), "copy"); });
  return 2.0 * static_cast<double>(half) / seconds;
}

double gather_bandwidth(const Machine& m, int row_bytes) {
  const int blocks = m.multiprocessors * 8, warps = blocks * 8, reads = 256;
  const auto rows = static_cast<std::uint32_t>(m.bytes / row_bytes);
  const double seconds =
      device_seconds(3, [&] { gather_kernel<<<blocks, 256>>>(m.data, rows, row_bytes / 16, reads, m.sink); });
  return static_cast<double>(warps) * reads * row_bytes / seconds;
}

// Seconds between two launches of an empty kernel, as the host sees them and as the device does.
double host_launch_seconds() {
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    check(cudaDeviceSynchronize(), "wait");
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < 500; ++i) empty_kernel<<<1, 32>>>();
    rounds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / 500);
  }
  return median(rounds);
}

double graph_node_seconds(int nodes) {
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < nodes; ++i) empty_kernel<<<1, 32, 0, stream>>>();
  cudaGraph_t graph;
  check(cudaStreamEndCapture(stream, &graph), "capture");
  cudaGraphExec_t executable;
  check(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  const double seconds = device_seconds(20, [&] { check(cudaGraphLaunch(executable, nullptr), "graph"); });
  check(cudaGraphExecDestroy(executable), "destroy");
  check(cudaGraphDestroy(graph), "destroy");
  check(cudaStreamDestroy(stream), "destroy");
  return seconds;
}

double grid_barrier_seconds(const Machine& m) {
  const auto launch = [&](int barriers) {
    void* arguments[] = {&barriers};
    check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(barrier_kernel), dim3(m.multiprocessors),
                                      dim3(256), arguments, 0, nullptr),
          "cooperative launch");
  };
  return (device_seconds(5, [&] { launch(1100); }) - device_seconds(5, [&] { launch(100); })) / 1000;
}

}  // namespace

int main() {
  Machine m;
  int device = 0, l2_bytes = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&m.multiprocessors, cudaDevAttrMultiProcessorCount, device), "attribute");
  check(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, device), "attribute");
  m.bytes = std::int64_t{4} << 30;
  check(cudaMalloc(&m.data, m.bytes), "memory");
  check(cudaMalloc(&m.sink, sizeof(float)), "memory");
  fill_kernel<<<m.multiprocessors * 8, 256>>>(m.data, m.bytes / 16);
  check(cudaDeviceSynchronize(), "fill");

  std::printf("{\"multiprocessors\": %d, \"l2_bytes\": %d, \"copy_bytes_per_second\": %.4g",
              m.multiprocessors, l2_bytes, copy_bandwidth(m));
  std::printf(", \"read_bytes_per_second\": {");
  for (const int megabytes : {8, 16, 24, 32, 48, 64, 4096}) {
    std::printf("%s\"%d MB\": %.4g", megabytes == 8 ? "" : ", ", megabytes,
                read_bandwidth(m, std::int64_t{megabytes} << 20));
  }
  std::printf("}, \"gather_bytes_per_second\": {\"1536 bytes\": %.4g, \"8192 bytes\": %.4g}",
              gather_bandwidth(m, 1536), gather_bandwidth(m, 8192));
  const double few = graph_node_seconds(10), many = graph_node_seconds(1010);
  std::printf(
      ", \"host_launch_seconds\": %.4g, \"device_launch_seconds\": %.4g, \"graph_node_seconds\": %.4g, "
      "\"graph_launch_seconds\": %.4g, \"grid_barrier_seconds\": %.4g}\n",
      host_launch_seconds(), device_seconds(500, [] { empty_kernel<<<1, 32>>>(); }), (many - few) / 1000,
      few - 10 * (many - few) / 1000, grid_barrier_seconds(m));
  check(cudaDeviceSynchronize(), "end");
  return 0;
}
