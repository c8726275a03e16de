// What a device can do. Models are written against this and know no device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "backend/small_model.h"
#include "backend/sparse.h"
#include "core/arena.h"
#include "core/tensor.h"
#include "kernels/kernel.h"

namespace fastsae {

// What the factors of products may be rounded to; sums are kept in the full type.
enum class Precision : std::uint8_t { full, tf32, bf16 };

// Rows as a caller hands them over, in host memory or in the memory of the backend's own device.
struct RowSource {
  const void* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride_bytes = 0;  // from one row to the next
  DType dtype = DType::f32;
  bool on_device = false;
  const std::byte* row(std::int64_t index) const {
    return static_cast<const std::byte*>(data) + index * stride_bytes;
  }
};

// Where memory is, in the numbers of DLPack: type 1 is the host's, 2 that of a CUDA device.
struct Place {
  std::int32_t type = 1;
  std::int32_t id = 0;
  friend bool operator==(const Place&, const Place&) = default;
};

// Copies a tensor that is complete to dense host memory. It outlives the backend, and any thread may call it.
using FetchRows = void (*)(Place from, const Tensor& tensor, void* to);

// Where dense rows of a result go: host memory, or memory of the backend's own device.
struct RowTarget {
  void* data;
  bool on_device;
  RowTarget(void* host) : data(host), on_device(false) {}
  RowTarget(void* where, bool device) : data(where), on_device(device) {}
};

// A factor of a product, taken transposed or as it is.
struct Factor {
  Tensor tensor;
  bool transposed = false;
  std::int64_t rows() const { return transposed ? tensor.cols : tensor.rows; }
  std::int64_t cols() const { return transposed ? tensor.rows : tensor.cols; }
};

// A tensor and what a pass does with its elements.
struct Mapped {
  Tensor out;
  Kernel kernel;
};

// A number on the device: scale times the sum of a tensor of doubles, row after row, is added to it.
struct Total {
  Tensor of;
  double scale;
  double* to;
};

// Square windows over images of [images * height * width x channels]: the one at (y, x) begins at the pixel
// (y * stride - padding, x * stride - padding); pixels outside of an image are 0. Columns are
// [images * rows * cols x kernel * kernel * channels]: one window a row, its pixels one after the other.
struct Windows {
  std::int64_t channels, height, width;
  std::int64_t kernel, stride, padding;
  std::int64_t rows, cols;  // windows down and across an image
  FS_HD std::int64_t per_image() const { return rows * cols; }
  FS_HD std::int64_t size() const { return kernel * kernel * channels; }
};

// The k largest of each row of (x weight' + bias) scale and the columns they are in, in the order of kernels/selection.h.
struct Selection {
  Tensor x;           // [rows x width]
  Tensor weight;      // [latents x width]
  Tensor bias;        // [1 x latents], or none
  Tensor values;      // [rows x k]
  Tensor indices;     // [rows x k] of i32
  Tensor scale = {};  // [1 x latents], not negative, or none
  // Whether a row's results lie in the order of their columns instead of that of their values.
  bool by_column = false;
};

// The `count` largest of the whole of that matrix that are greater than 0 or NaN, fewer where fewer are: in the same order,
// of equal ones those in lower rows first. They come as compressed rows, with columns that ascend.
struct BatchSelection {
  Tensor x;            // [rows x width]
  Tensor weight;       // [latents x width]
  Tensor bias;         // [1 x latents], or none
  Tensor scale;        // [1 x latents], not negative, or none
  std::int64_t count;  // 0 or more
  Tensor starts;       // [1 x rows + 1] of i32: where each row begins, then how many were kept
  Tensor columns;      // [1 x count] of i32
  Tensor values;       // [1 x count]
  double* smallest;    // the last that is kept, or 0
  // About what that may be, or none; only the speed depends on it.
  const double* hint = nullptr;
};

// Called now and then on the thread that entered the library, between pieces of work; cancels by throwing.
using Poll = std::function<void()>;

class Backend {
 public:
  virtual ~Backend() = default;

  // Whether tensors may be views of host memory; if so, calls may run side by side and steps are not recorded.
  virtual bool reads_host_memory() const = 0;
  // Whether tensors may be views of these rows.
  bool reads(const RowSource& rows) const { return rows.on_device || reads_host_memory(); }
  virtual Place place() const = 0;
  // Its queue of work, as DLPack's producers take it; null where there is none.
  virtual void* stream() const = 0;
  // Waits until all that was begun is done.
  virtual void finish() noexcept = 0;
  // Bytes that allocate() could give.
  virtual std::size_t free_memory() const = 0;
  virtual FetchRows fetch_rows() const = 0;
  // Whether products are faster where their factors have shadows.
  virtual bool wants_shadows() const = 0;
  // Zeroed; MemoryError if there is too little.
  virtual Memory allocate(std::size_t bytes) = 0;

  // out = A B (added to what is there if `accumulate`), then the kernel on each element while it is in cache.
  virtual void product(Factor a, Factor b, Tensor out, bool accumulate, const Kernel* kernel, Sums sums) = 0;
  // The kernel on each element of out.
  virtual void map(Tensor out, const Kernel& kernel, Sums sums) = 0;
  // The same for several tensors at once, with kernels of one struct and without sums.
  virtual void map_each(std::span<const Mapped> items) = 0;
  // An encoder product and its selection; rows x latents is never stored.
  virtual void encode_select(const Selection& selection) = 0;
  virtual void encode_select_batch(const BatchSelection& selection) = 0;
  virtual void select_dead(const DeadSelection& selection) = 0;
  // Sparse codes, see backend/sparse.h: their decoder with loss and gradient, from one gather.
  virtual void decode(const Decoding& decoding) = 0;
  // Appends a tile's rows to the codes; where they have more elements than are wanted, those rows are empty.
  virtual void collect(const Collection& collection) = 0;
  // A code in rows of zeros.
  virtual void write_code(const Code& code, Tensor rows) = 0;
  // Sorts their elements by latent; fired[j] becomes the number of rows of the first code in which latent j is not 0.
  virtual void index_latents(std::span<const CodeGradient> codes, std::int64_t slots,
                             const LatentIndex& index, Tensor fired) = 0;
  // Of each latent the squared length of its rows' gradient [1 x latents, f64] and, from an index, the sum of its
  // slopes [1 x latents]. It comes before the two below.
  virtual void measure_latents(const LatentRows& rows, Tensor squares, Tensor sums) = 0;
  // The gradient as matrices, before projection.
  virtual void write_latents(const LatentRows& rows, Tensor encoder, Tensor decoder) = 0;
  virtual void update_latents(const LatentRows& rows, const LatentUpdate& update) = 0;
  // Adds the values of a code to sums [1 x latents] of f64 by latent, row after row.
  virtual void sum_by_latent(const Code& code, Tensor sums) = 0;
  // What is not 0 of a tile that is written down as a code; false if it has no room there or the device makes none.
  virtual bool list_elements(Tensor, const Code&) { return false; }
  // The Euclidean norm of each row, [1 x rows] of its type.
  virtual void row_norms(Tensor of, Tensor norms) = 0;
  // Copies each window of the images into its row of `columns`.
  virtual void unfold(const Windows& windows, Tensor images, Tensor columns) = 0;
  // Its transpose: each pixel becomes the sum of its places in `columns`, then the kernel runs on it.
  virtual void fold(const Windows& windows, Tensor columns, Tensor images, const Kernel* kernel,
                    Sums sums) = 0;
  virtual void copy(Tensor to, Tensor from) = 0;
  virtual void fill(Tensor to, double value) = 0;
  // Row i of out is row order[i] of the source (row i if order is null), converted to out's type.
  virtual void gather(const RowSource& source, const std::int64_t* order, Tensor out) = 0;
  // The first row that holds NaN or a number outside [low, high], or -1. Waits for the device.
  virtual std::int64_t first_row_outside(const RowSource& rows, double low, double high) = 0;
  // Dense host memory of the tensor's own type.
  virtual void read(const Tensor& from, void* to) = 0;
  virtual void write(const Tensor& to, const void* from) = 0;
  virtual void add_totals(std::span<const Total> totals) = 0;
  // Runs the calls of a step. A device may record them and replay the record whenever the key comes again, so
  // that between two steps of one key only memory may change, and the body must not read or wait.
  virtual void step(std::int64_t key, const std::function<void()>& body) = 0;
  // Calls `yes`, or `no` if a number on the device is 0. Both are recorded where a step is, and the device chooses
  // whenever it is replayed: so they change nothing on the host.
  virtual void either(const double* number, const std::function<void()>& yes,
                      const std::function<void()>& no) = 0;
  // Whether it can.
  virtual bool chooses() const { return true; }
  // How many steps on `rows` rows each it takes at once of a model this small; 0 where it does none, or is too small.
  virtual std::int64_t small_steps(const SmallModel&, std::int64_t) { return 0; }
  // Takes them. Later steps do nothing once one was not finite.
  virtual void take_small_steps(const SmallModel&, const SmallBatches&) {}
  // Steps that may be begun before the host looks at their outcome.
  virtual std::int64_t steps_in_flight() const = 0;

  virtual void poll() = 0;
};

// "cpu", with the number of threads the process-wide settings say, or a GPU.
std::unique_ptr<Backend> make_backend(const std::string& device, Precision precision, Poll poll);

}  // namespace fastsae
