// The CUDA backend: one stream, steps recorded as graphs.
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <list>
#include <utility>
#include <vector>

#include "backend/convert.h"
#include "backend/plugin.h"
#include "cublaslt.h"
#include "handles.h"
#include "passes.h"
#include "recording.h"
#include "select_tiles.h"
#include "small_layout.h"
#include "staging.h"

namespace fastsae::cuda {
namespace {

constexpr std::size_t kGraphs = 8;           // of the latest step keys
constexpr std::size_t kDeepest = 2;          // branches within branches
constexpr std::int64_t kStepsInFlight = 32;  // before the host looks at their outcome
constexpr std::int64_t kSmallSteps = 2048;   // at once: well under a second

// To dense host memory, which it is in when this returns.
void read_back(const Tensor& from, void* to, cudaStream_t stream) {
  const std::size_t row_bytes = from.row_bytes(),
                    pitch = static_cast<std::size_t>(from.stride) * size_of(from.dtype);
  if (pitch == row_bytes) {
    FS_CUDA(cudaMemcpyAsync(to, from.data, row_bytes * static_cast<std::size_t>(from.rows),
                            cudaMemcpyDeviceToHost, stream));
  } else {
    FS_CUDA(cudaMemcpy2DAsync(to, row_bytes, from.data, pitch, row_bytes, from.rows, cudaMemcpyDeviceToHost,
                              stream));
  }
  FS_CUDA(cudaStreamSynchronize(stream));
}

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
    FS_CUDA(cudaDeviceGetAttribute(&shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_));
    FS_CUDA(cudaDriverGetVersion(&driver_));
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
      for (Stream& stream : branches_) (void)stream.release();
      (void)staging_.release();
      (void)blas_.release();
      for (Recorded& recorded : graphs_) (void)recorded.graph.release();
    }
  }

  bool reads_host_memory() const override { return false; }

  Place place() const override { return {2, device_}; }

  void* stream() const override { return stream_.get(); }

  void finish() noexcept override {
    if (process_ == getpid()) (void)cudaStreamSynchronize(stream_.get());
  }

  std::size_t free_memory() const override {
    use_device();
    std::size_t free_bytes = 0, all = 0;
    FS_CUDA(cudaMemGetInfo(&free_bytes, &all));
    return free_bytes;
  }

  FetchRows fetch_rows() const override {
    return [](Place from, const Tensor& tensor, void* to) {
      FS_CUDA(cudaSetDevice(from.id));
      read_back(tensor, to, cudaStreamPerThread);
    };
  }

  bool wants_shadows() const override { return precision_ == Precision::bf16; }

  Memory allocate(std::size_t bytes) override {
    use_device();
    void* memory = nullptr;
    if (const cudaError_t error = cudaMalloc(&memory, std::max<std::size_t>(bytes, 1));
        error != cudaSuccess) {
      (void)cudaGetLastError();
      const std::size_t free_bytes = free_memory();
      if (error == cudaErrorMemoryAllocation || bytes > free_bytes) throw MemoryError(bytes, free_bytes);
      check(error, "cudaMalloc");
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

  void map_each(std::span<const Mapped> items) override {
    use_device();
    launch_map_each(items, stream_.get());
  }

  void encode_select(const Selection& selection) override {
    use_device();
    const ScoreTile tile = score_tile(selection.x.rows, selection.weight.rows, selection.x.dtype);
    for_each_score_tile(selection, tile, room(scores_, tile.bytes(selection.x.dtype)),
                        [&](const Selection& part, const Tensor& scores, std::int64_t first) {
                          score(*this, part, scores);
                          launch_select(scores, first, part, stream_.get());
                        });
  }

  void encode_select_batch(const BatchSelection& selection) override {
    use_device();
    BatchWork work(selection);
    work.use(room(codes_, work.bytes()));
    const auto make = [this](const Selection& part, const Tensor& scores) { score(*this, part, scores); };
    launch_select_batch(work, make, stream_.get());
  }

  void select_dead(const DeadSelection& selection) override {
    use_device();
    DeadWork work(selection);
    work.use(room(codes_, work.bytes()));
    launch_select_dead(work, precision_, stream_.get());
  }

  void decode(const Decoding& decoding) override {
    use_device();
    launch_decode(decoding, stream_.get());
  }

  void collect(const Collection& collection) override {
    use_device();
    CollectWork work(collection);
    work.use(room(codes_, work.bytes()));
    launch_collect(work, stream_.get());
  }

  void sum_by_latent(const Code& code, Tensor sums) override {
    use_device();
    LatentSums all(code, sums);
    all.use(room(codes_, all.bytes()));
    launch_sum_latents(all, stream_.get());
  }

  void write_code(const Code& code, Tensor rows) override {
    use_device();
    launch_write_code(code, rows, stream_.get());
  }

  void index_latents(std::span<const CodeGradient> codes, std::int64_t slots, const LatentIndex& index,
                     Tensor fired) override {
    use_device();
    IndexTasks tasks(codes, slots, index, fired);
    tasks.use(room(codes_, tasks.bytes()));
    launch_index(tasks, stream_.get());
  }

  void measure_latents(const LatentRows& rows, Tensor squares, Tensor sums) override {
    use_device();
    launch_measure_latents(rows, squares, sums, memory_of(rows), stream_.get());
  }

  void write_latents(const LatentRows& rows, Tensor encoder, Tensor decoder) override {
    use_device();
    launch_write_latents(rows, encoder, decoder, memory_of(rows), stream_.get());
  }

  void update_latents(const LatentRows& rows, const LatentUpdate& update) override {
    use_device();
    launch_update_latents(rows, update, memory_of(rows), stream_.get());
  }

  void row_norms(Tensor of, Tensor norms) override {
    use_device();
    launch_row_norms(of, norms, stream_.get());
  }

  void unfold(const Windows& windows, Tensor images, Tensor columns) override {
    use_device();
    launch_unfold(windows, images, columns, stream_.get());
  }

  // The kernel as a pass of its own, as after a product of cuBLASLt's: what it reads is in the cache, and the list of
  // kernels is compiled no second time.
  void fold(const Windows& windows, Tensor columns, Tensor images, const Kernel* kernel, Sums sums) override {
    use_device();
    Tensor folded = images;
    if (kernel != nullptr) folded.shadow = nullptr;  // the kernel's pass writes it
    launch_fold(windows, columns, folded, stream_.get());
    if (kernel != nullptr) map(images, *kernel, sums);
  }

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
    if (source.on_device)
      launch_gather(source, uploaded(order, out.rows), out, stream_.get());
    else
      upload(source, order, out);
    poll();
  }

  std::int64_t first_row_outside(const RowSource& source, double low, double high) override {
    use_device();
    FS_REQUIRE(source.on_device, "X: expected rows in the device's memory");
    std::vector<std::int64_t> found(static_cast<std::size_t>(search_blocks(source)));
    if (found.empty()) return -1;
    const std::size_t bytes = found.size() * sizeof(std::int64_t);
    auto* on_device = static_cast<std::int64_t*>(room(order_, bytes));
    launch_search(source, low, high, on_device, stream_.get());
    FS_CUDA(cudaMemcpyAsync(found.data(), on_device, bytes, cudaMemcpyDeviceToHost, stream_.get()));
    FS_CUDA(cudaStreamSynchronize(stream_.get()));
    const std::int64_t first = *std::min_element(found.begin(), found.end());
    return first < source.rows ? first : -1;
  }

  void read(const Tensor& from, void* to) override {
    use_device();
    read_back(from, to, stream_.get());
  }

  void write(const Tensor& to, const void* from) override {
    use_device();
    upload({from, to.rows, to.cols, static_cast<std::int64_t>(to.row_bytes()), to.dtype}, nullptr, to);
  }

  void add_totals(std::span<const Total> totals) override {
    use_device();
    launch_add_totals(totals, stream_.get());
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
    if (!found->graph) {
      try {
        found->graph = recorded(body);
      } catch (const MoreRoom& more) {
        room(*more.scratch, more.bytes);  // forgets all graphs: this step is run as a first one
        return step(key, body);
      }
    }
    FS_CUDA(cudaGraphLaunch(found->graph.get(), stream_.get()));
  }

  // Where nothing is recorded, the host looks.
  void either(const double* number, const std::function<void()>& yes,
              const std::function<void()>& no) override {
    use_device();
    if (!recording_) {
      if (blas_) blas_->start();  // so that recording the other way allocates nothing
      while (branches_.size() < kDeepest) branches_.push_back(make_stream());
      double value = 0;
      FS_CUDA(cudaMemcpyAsync(&value, number, sizeof(value), cudaMemcpyDeviceToHost, stream_.get()));
      FS_CUDA(cudaStreamSynchronize(stream_.get()));
      return (value != 0 ? yes : no)();
    }
    const Branches both = add_branches(number, stream_.get());
    record_branch(both.yes, yes);
    record_branch(both.no, no);
  }
  bool chooses() const override { return driver_ >= kOldestToBranch; }

  std::int64_t small_steps(const SmallModel& model, std::int64_t rows) override {
    return precision_ == Precision::full && fits(model, rows, shared_bytes_) ? kSmallSteps : 0;
  }

  void take_small_steps(const SmallModel& model, const SmallBatches& batches) override {
    use_device();
    launch_small(model, batches, shared_bytes_, stream_.get());
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
    const std::size_t row_bytes = std::max<std::size_t>(1, out.row_bytes());
    const auto at_once = static_cast<std::int64_t>(staging_->largest() / row_bytes);
    FS_REQUIRE(at_once > 0, "X: a row of ", row_bytes, " bytes is more than fits in staging");
    for (std::int64_t first = 0; first < out.rows; first += at_once) {
      const std::int64_t count = std::min(at_once, out.rows - first);
      staging_->send(count * row_bytes, stream_.get(), [&](std::byte* staged, std::size_t) {
        for (std::int64_t row = 0; row < count; ++row) {
          const std::int64_t index = order == nullptr ? first + row : order[first + row];
          convert(source.row(index), staged + row * row_bytes, out.cols);
        }
        copy_rows(out.slice_rows(first, count), staged, out.cols, cudaMemcpyHostToDevice);
      });
    }
    if (out.shadow != nullptr) launch_shadow(out, stream_.get());
  }

  // The order in the device's memory until the next one; null stays null.
  const std::int64_t* uploaded(const std::int64_t* order, std::int64_t count) {
    if (order == nullptr) return nullptr;
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(std::int64_t);
    const auto* from = reinterpret_cast<const std::byte*>(order);
    auto* to = static_cast<std::byte*>(room(order_, bytes));
    for (std::size_t done = 0; done < bytes;) {
      done += staging_->send(bytes - done, stream_.get(), [&](std::byte* staged, std::size_t part) {
        std::memcpy(staged, from + done, part);
        FS_CUDA(cudaMemcpyAsync(to + done, staged, part, cudaMemcpyHostToDevice, stream_.get()));
      });
    }
    return reinterpret_cast<const std::int64_t*>(to);
  }

  void use_device() const {
    if (process_ != getpid())
      throw DeviceError("this engine was made before a fork; a child process needs its own");
    FS_CUDA(cudaSetDevice(device_));
  }

  Graph recorded(const std::function<void()>& body) {
    const Set<bool> recording(recording_, true);
    cudaGraph_t graph = record(stream_.get(), nullptr, body);
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    check(error, "cudaGraphInstantiate");
    return Graph(executable);
  }

  // A branch is recorded by a stream of its own.
  void record_branch(cudaGraph_t graph, const std::function<void()>& body) {
    FS_REQUIRE(depth_ < branches_.size(), "a step branches more than ", kDeepest, " times at once");
    Stream& own = branches_[depth_];
    const Set<std::size_t> deeper(depth_, depth_ + 1);
    stream_.swap(own);
    try {
      record(stream_.get(), graph, body);
    } catch (...) {
      stream_.swap(own);
      throw;
    }
    stream_.swap(own);
  }

  // A value for as long as this lives.
  template <class T>
  class Set {
   public:
    Set(T& of, T value) : of_(of), before_(std::exchange(of, value)) {}
    ~Set() { of_ = before_; }
    Set(const Set&) = delete;
    Set& operator=(const Set&) = delete;

   private:
    T& of_;
    const T before_;
  };

  // Memory that passes of the stream share one after the other; it grows when a step is run for the first time.
  struct Scratch {
    Memory memory;
    std::size_t bytes = 0;
  };

  // What is wanted while a step is recorded: a way that its first run did not go.
  struct MoreRoom {
    Scratch* scratch;
    std::size_t bytes;
  };

  void* room(Scratch& scratch, std::size_t bytes) {
    if (bytes > scratch.bytes) {
      if (recording_) throw MoreRoom{&scratch, bytes};
      graphs_.clear();  // they hold the old address
      scratch = {};
      scratch.memory = allocate(bytes);
      scratch.bytes = bytes;
    }
    return scratch.memory.get();
  }

  LatentMemory memory_of(const LatentRows& rows) {
    LatentMemory memory(rows);
    if (!memory.in_shared()) memory.spare = room(codes_, memory.spare_bytes());
    return memory;
  }

  // All passes share it: each has added its own sums up before the next begins.
  double* partials(const Kernel* kernel, const Tensor& out) {
    return static_cast<double*>(room(partial_, partial_doubles(kernel, out) * sizeof(double)));
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
  int shared_bytes_ = 0;  // that one block may have
  Stream stream_;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<CublasLt> blas_;  // or null: our own products do it all
  std::list<Recorded> graphs_;
  int driver_ = 0;
  bool recording_ = false;
  std::vector<Stream> branches_;  // one for each depth
  std::size_t depth_ = 0;         // of the branch that is recorded
  Scratch partial_, scores_, order_, codes_;
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
