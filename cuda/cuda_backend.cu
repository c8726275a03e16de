// The CUDA backend: one stream, steps recorded as graphs.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <mutex>

#include "backend/convert.h"
#include "backend/plugin.h"
#include "cublaslt.h"
#include "handles.h"
#include "passes.h"

namespace fastsae::cuda {
namespace {

constexpr std::size_t kGraphs = 8;           // of the latest step keys
constexpr std::int64_t kStepsInFlight = 32;  // before the host looks at their outcome
constexpr std::size_t kStagingBytes = std::size_t{8} << 20;

// Pinned memory in two halves: one is filled while the other is copied.
class Staging {
 public:
  Staging() {
    void* memory = nullptr;
    FS_CUDA(cudaMallocHost(&memory, 2 * kStagingBytes));
    memory_.reset(memory);
    for (Event& event : copied_) event = make_event();
  }
  std::byte* next() {
    half_ = 1 - half_;
    FS_CUDA(cudaEventSynchronize(copied_[half_].get()));
    return static_cast<std::byte*>(memory_.get()) + half_ * kStagingBytes;
  }
  void sent(cudaStream_t stream) { FS_CUDA(cudaEventRecord(copied_[half_].get(), stream)); }

 private:
  Pinned memory_;
  Event copied_[2];
  int half_ = 0;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, Precision precision, Poll poll)
      : device_(device), precision_(precision), process_(getpid()), poll_(std::move(poll)) {
    use_device();
    int major = 0;
    FS_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_));
    if (major < 8) {
      throw DeviceError(
          text("cuda:", device_, " has compute capability ", major, ".x; 8.0 or newer is needed"));
    }
    stream_ = make_stream();
    staging_ = std::make_unique<Staging>();
    if (const lt::Functions* functions = lt::find()) {
      blas_ = std::make_unique<CublasLt>(*functions, precision_,
                                         [this](std::size_t bytes) { return allocate(bytes); });
    }
  }

  ~CudaBackend() override {
    if (process_ != getpid()) {  // the context stayed in the parent: nothing here can be freed
      (void)stream_.release();
      (void)staging_.release();
      (void)blas_.release();
      for (Recorded& recorded : graphs_) (void)recorded.graph.release();
    }
  }

  bool reads_host_memory() const override { return false; }

  bool wants_shadows() const override { return precision_ == Precision::bf16; }

  Memory allocate(std::size_t bytes) override {
    use_device();
    void* memory = nullptr;
    if (const cudaError_t error = cudaMalloc(&memory, std::max<std::size_t>(bytes, 1));
        error != cudaSuccess) {
      (void)cudaGetLastError();
      if (error != cudaErrorMemoryAllocation) check(error, "cudaMalloc");
      std::size_t free_bytes = 0, all = 0;
      FS_CUDA(cudaMemGetInfo(&free_bytes, &all));
      throw MemoryError(bytes, free_bytes);
    }
    Memory owner(memory, [device = device_, process = process_](void* p) {
      if (process != getpid()) return;
      cudaSetDevice(device);
      cudaFree(p);
    });
    FS_CUDA(cudaMemsetAsync(memory, 0, bytes, stream_.get()));
    return owner;
  }

  void product(Factor a, Factor b, Tensor out, bool accumulate, const Kernel* kernel, Sums sums) override {
    use_device();
    const bool shadows = a.tensor.shadow != nullptr && b.tensor.shadow != nullptr;
    const ProductTraits traits{out.rows, out.cols, a.cols(), out.dtype, shadows};
    Means means = choose_product(traits, precision_, blas_ != nullptr);
    if (means == Means::cublaslt) {
      if (blas_->product(a, b, out, accumulate, stream_.get())) {
        if (kernel != nullptr)
          map(out, *kernel, sums);
        else if (out.shadow != nullptr)
          launch_shadow(out, stream_.get());
        return;
      }
      means = choose_product(traits, precision_, false);
    }
    const ProductCall call{a, b, out, accumulate};
    if (has_product(kernel)) {
      launch_product(call, means, precision_, kernel, sums, partials(kernel, out), stream_.get());
    } else {
      launch_product(call, means, precision_, nullptr, {}, nullptr, stream_.get());
      map(out, *kernel, sums);
    }
  }

  void map(Tensor out, const Kernel& kernel, Sums sums) override {
    use_device();
    launch_map(kernel, out, sums, partials(&kernel, out), stream_.get());
  }

  void encode_select(const Selection&) override { throw DeviceError("encode_select"); }

  void copy(Tensor to, Tensor from) override {
    use_device();
    copy_rows(to, from.data, from.stride, cudaMemcpyDeviceToDevice);
    if (to.shadow != nullptr) launch_shadow(to, stream_.get());
  }

  void fill(Tensor to, double value) override {
    use_device();
    launch_fill(to, value, stream_.get());
  }

  void gather(const RowSource& source, const std::int64_t* order, Tensor out) override {
    use_device();
    upload(source, order, out);
    poll();
  }

  void read(const Tensor& from, void* to) override {
    use_device();
    const std::size_t pitch = static_cast<std::size_t>(from.stride) * size_of(from.dtype);
    FS_CUDA(cudaMemcpy2DAsync(to, from.row_bytes(), from.data, pitch, from.row_bytes(), from.rows,
                              cudaMemcpyDeviceToHost, stream_.get()));
    FS_CUDA(cudaStreamSynchronize(stream_.get()));
  }

  void write(const Tensor& to, const void* from) override {
    use_device();
    upload({from, to.rows, to.cols, static_cast<std::int64_t>(to.row_bytes()), to.dtype}, nullptr, to);
  }

  void add_total(const Tensor& of, double scale, double* to) override {
    use_device();
    launch_add_total(of, scale, to, stream_.get());
  }

  // The first run of a key is eager and settles all memory; the second is recorded; later ones replay.
  void step(std::int64_t key, const std::function<void()>& body) override {
    use_device();
    const auto found =
        std::find_if(graphs_.begin(), graphs_.end(), [&](const Recorded& r) { return r.key == key; });
    if (found == graphs_.end()) {
      body();
      graphs_.push_front({key, Graph()});
      if (graphs_.size() > kGraphs) graphs_.pop_back();
      return;
    }
    graphs_.splice(graphs_.begin(), graphs_, found);
    if (!found->graph) found->graph = record(body);
    FS_CUDA(cudaGraphLaunch(found->graph.get(), stream_.get()));
  }

  std::int64_t steps_in_flight() const override { return kStepsInFlight; }

  void poll() override {
    if (poll_) poll_();
  }

 private:
  struct Recorded {
    std::int64_t key;
    Graph graph;
  };

  // Through pinned memory: the source may change as soon as this returns.
  void upload(const RowSource& source, const std::int64_t* order, const Tensor& out) {
    const ConvertRow convert = row_converter(source.dtype, out.dtype);
    const std::int64_t at_once = std::max<std::int64_t>(
        1, static_cast<std::int64_t>(kStagingBytes / std::max<std::size_t>(1, out.row_bytes())));
    FS_REQUIRE(out.row_bytes() <= kStagingBytes, "X: a row of ", out.row_bytes(),
               " bytes is more than fits in staging");
    for (std::int64_t first = 0; first < out.rows; first += at_once) {
      const std::int64_t count = std::min(at_once, out.rows - first);
      std::byte* staged = staging_->next();
      for (std::int64_t row = 0; row < count; ++row) {
        const std::int64_t index = order == nullptr ? first + row : order[first + row];
        convert(source.row(index), staged + row * out.row_bytes(), out.cols);
      }
      copy_rows(out.slice_rows(first, count), staged, out.cols, cudaMemcpyHostToDevice);
      staging_->sent(stream_.get());
    }
    if (out.shadow != nullptr) launch_shadow(out, stream_.get());
  }

  void use_device() const {
    if (process_ != getpid())
      throw DeviceError("this engine was made before a fork; a child process needs its own");
    FS_CUDA(cudaSetDevice(device_));
  }

  Graph record(const std::function<void()>& body) {
    FS_CUDA(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeThreadLocal));
    cudaGraph_t graph = nullptr;
    try {
      body();
    } catch (...) {
      cudaStreamEndCapture(stream_.get(), &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      (void)cudaGetLastError();
      throw;
    }
    FS_CUDA(cudaStreamEndCapture(stream_.get(), &graph));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "cudaGraphInstantiate");
    return Graph(executable);
  }

  // Room for partial sums. All passes of the stream share it: each has added its own up before the next begins.
  double* partials(const Kernel* kernel, const Tensor& out) {
    const std::size_t doubles = partial_doubles(kernel, out);
    if (doubles > partial_doubles_) {
      graphs_.clear();  // they hold the old address
      partial_.reset();
      partial_doubles_ = 0;
      partial_ = allocate(doubles * sizeof(double));
      partial_doubles_ = doubles;
    }
    return static_cast<double*>(partial_.get());
  }

  void copy_rows(const Tensor& to, const void* from, std::int64_t from_stride, cudaMemcpyKind kind) {
    const std::size_t size = size_of(to.dtype);
    if (to.stride == to.cols && from_stride == to.cols) {
      FS_CUDA(
          cudaMemcpyAsync(to.data, from, static_cast<std::size_t>(to.size()) * size, kind, stream_.get()));
      return;
    }
    FS_CUDA(cudaMemcpy2DAsync(to.data, static_cast<std::size_t>(to.stride) * size, from,
                              static_cast<std::size_t>(from_stride) * size, to.row_bytes(), to.rows, kind,
                              stream_.get()));
  }

  const int device_;
  const Precision precision_;
  const pid_t process_;
  const Poll poll_;
  Stream stream_;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<CublasLt> blas_;  // or null: our own products do it all
  std::list<Recorded> graphs_;
  Memory partial_;
  std::size_t partial_doubles_ = 0;
};

}  // namespace
}  // namespace fastsae::cuda

extern "C" {

__attribute__((visibility("default"))) fastsae::Backend* fastsae_cuda_backend(const char* contract,
                                                                              int device,
                                                                              fastsae::Precision precision,
                                                                              const fastsae::Poll* poll) {
  using namespace fastsae;
  if (std::strcmp(contract, FASTSAE_CONTRACT) != 0) {
    throw DeviceError("libfastsae_cuda.so is of another build than fastsae itself; install fastsae anew");
  }
  return new cuda::CudaBackend(device, precision, *poll);
}

// The number of usable devices; `reason` says why there is none.
__attribute__((visibility("default"))) int fastsae_cuda_devices(std::string* reason) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  (void)cudaGetLastError();
  *reason = error == cudaSuccess ? "the driver shows no device" : cudaGetErrorString(error);
  return 0;
}

// The library that large products are computed by, or nothing.
__attribute__((visibility("default"))) void fastsae_cuda_blas(std::string* name) {
  *name = fastsae::cuda::lt::name();
}
}
