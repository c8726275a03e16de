#include "cublaslt.h"

#include <optional>

#include "core/error.h"
#include "core/library.h"

namespace fastsae::cuda {
namespace lt {
namespace {

// The latest first. By name alone: a copy that PyTorch or cuda-pathfinder has loaded is taken.
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

struct Opened {
  std::optional<Library> library;
  Functions functions{};

  template <class F>
  void bind(F& function, const char* symbol) {
    function = library->function<F>(symbol);
  }

  Opened() {
    for (const char* file : kNames) {
      if (!library && Library::can_open(file)) open(file);
    }
  }

  void open(const char* file) {
    library.emplace(file, Library::Symbols::shared);
    bind(functions.version, "cublasLtGetVersion");
    bind(functions.create, "cublasLtCreate");
    bind(functions.destroy, "cublasLtDestroy");
    bind(functions.describe, "cublasLtMatmulDescCreate");
    bind(functions.destroy_description, "cublasLtMatmulDescDestroy");
    bind(functions.set_description, "cublasLtMatmulDescSetAttribute");
    bind(functions.lay_out, "cublasLtMatrixLayoutCreate");
    bind(functions.destroy_layout, "cublasLtMatrixLayoutDestroy");
    bind(functions.prefer, "cublasLtMatmulPreferenceCreate");
    bind(functions.destroy_preference, "cublasLtMatmulPreferenceDestroy");
    bind(functions.set_preference, "cublasLtMatmulPreferenceSetAttribute");
    bind(functions.choose, "cublasLtMatmulAlgoGetHeuristic");
    bind(functions.multiply, "cublasLtMatmul");
  }
};

}  // namespace

const Functions* find() {
  static const Opened* opened = new Opened;  // never closed
  return opened->library ? &opened->functions : nullptr;
}

std::string name() {
  const Functions* functions = find();
  if (functions == nullptr) return "";
  // 130101 is 13.1.1, and 12 had 120805 for 12.8.5.
  const std::size_t version = functions->version();
  return text("cuBLASLt ", version / 10000, ".", version / 100 % 100, ".", version % 100);
}

}  // namespace lt

namespace {

constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

void check(lt::Status status, const char* what) {
  if (status != 0) throw DeviceError(text("cuBLASLt: ", what, " failed with status ", status));
}

lt::DataType type_of(DType dtype) {
  return dtype == DType::f64 ? lt::kDouble : dtype == DType::bf16 ? lt::kBf16 : lt::kFloat;
}

// The largest power of two, up to 256, that divides an address.
std::uint32_t alignment_of(const void* address) {
  const auto value = reinterpret_cast<std::uintptr_t>(address) | 256;
  return static_cast<std::uint32_t>(value & -value);
}

// What the library reads: the factor itself, or its shadow.
Factor read_form(const Factor& factor, bool shadow) {
  Factor form = factor;
  if (shadow) {
    form.tensor.data = factor.tensor.shadow;
    form.tensor.dtype = DType::bf16;
  }
  return form;
}

}  // namespace

CublasLt::CublasLt(const lt::Functions& functions, Precision precision, Allocate allocate)
    : functions_(functions),
      precision_(precision),
      allocate_(std::move(allocate)),
      handle_(nullptr, functions.destroy) {}

// A library that does not fit the driver cannot start: then it is as if there were none.
bool CublasLt::start() {
  if (!started_) {
    started_ = true;
    lt::Opaque handle = nullptr;
    if (functions_.create(&handle) != 0) return false;
    workspace_ = allocate_(kWorkspaceBytes);
    handle_.reset(handle);
  }
  return handle_ != nullptr;
}

// To the library, which counts along columns, our row-major matrices are transposed: out' = B' A'. So its first
// factor is our second one, and a factor that is taken as it is here is so there.
CublasLt::Plan CublasLt::make_plan(const Factor& a, const Factor& b, const Tensor& out,
                                   const Key& key) const {
  const lt::DataType scale = out.dtype == DType::f64 ? lt::kDouble : lt::kFloat;
  const bool tf32 = precision_ == Precision::tf32 && a.tensor.dtype == DType::f32;
  const lt::Compute compute = out.dtype == DType::f64 ? lt::kCompute64
                              : tf32                  ? lt::kComputeTf32
                                                      : lt::kCompute32;

  lt::Opaque made = nullptr;
  check(functions_.describe(&made, compute, scale), "cublasLtMatmulDescCreate");
  Owner description = own(made, functions_.destroy_description);
  const auto transpose = [&](lt::DescriptionAttribute which, const Factor& factor) {
    const std::int32_t value = factor.transposed;
    check(functions_.set_description(made, which, &value, sizeof value), "cublasLtMatmulDescSetAttribute");
  };
  transpose(lt::kTransposeA, b);
  transpose(lt::kTransposeB, a);

  const auto layout = [&](const Tensor& x) {
    lt::Opaque shape = nullptr;
    check(functions_.lay_out(&shape, type_of(x.dtype), static_cast<std::uint64_t>(x.cols),
                             static_cast<std::uint64_t>(x.rows), x.stride),
          "cublasLtMatrixLayoutCreate");
    return own(shape, functions_.destroy_layout);
  };
  Plan plan{std::move(description), layout(a.tensor), layout(b.tensor), layout(out), {}, false};

  check(functions_.prefer(&made), "cublasLtMatmulPreferenceCreate");
  const Owner preference = own(made, functions_.destroy_preference);
  const auto set = [&](lt::PreferenceAttribute which, const auto& value) {
    check(functions_.set_preference(made, which, &value, sizeof value),
          "cublasLtMatmulPreferenceSetAttribute");
  };
  set(lt::kMostWorkspace, std::uint64_t{kWorkspaceBytes});
  set(lt::kReductionSchemes, lt::kSumsInWorkspace);
  set(lt::kAlignmentA, static_cast<std::uint32_t>(key[10]));
  set(lt::kAlignmentB, static_cast<std::uint32_t>(key[9]));
  set(lt::kAlignmentC, static_cast<std::uint32_t>(key[11]));
  set(lt::kAlignmentD, static_cast<std::uint32_t>(key[11]));

  int found = 0;
  const lt::Status status =
      functions_.choose(handle_.get(), plan.description.get(), plan.b.get(), plan.a.get(), plan.out.get(),
                        plan.out.get(), preference.get(), 1, &plan.heuristic, &found);
  plan.exists =
      status == 0 && found == 1 && plan.heuristic.status == 0 && plan.heuristic.workspace <= kWorkspaceBytes;
  return plan;
}

bool CublasLt::product(const Factor& a, const Factor& b, const Tensor& out, bool accumulate,
                       CUstream_st* stream) {
  if (!start()) return false;
  const bool bf16 = precision_ == Precision::bf16 && out.dtype == DType::f32;
  const Factor left = read_form(a, bf16), right = read_form(b, bf16);
  const Key key{out.rows,
                out.cols,
                left.cols(),
                left.transposed,
                right.transposed,
                left.tensor.stride,
                right.tensor.stride,
                out.stride,
                static_cast<std::int64_t>(out.dtype),
                alignment_of(left.tensor.data),
                alignment_of(right.tensor.data),
                alignment_of(out.data)};
  auto found = plans_.find(key);
  if (found == plans_.end()) found = plans_.emplace(key, make_plan(left, right, out, key)).first;
  const Plan& plan = found->second;
  if (!plan.exists) return false;

  // One of each in the type of the sums.
  const double one = 1, more = accumulate ? 1 : 0;
  const float short_one = 1, short_more = accumulate ? 1 : 0;
  const bool wide = out.dtype == DType::f64;
  const void* alpha = wide ? static_cast<const void*>(&one) : &short_one;
  const void* beta = wide ? static_cast<const void*>(&more) : &short_more;
  check(functions_.multiply(handle_.get(), plan.description.get(), alpha, right.tensor.data, plan.b.get(),
                            left.tensor.data, plan.a.get(), beta, out.data, plan.out.get(), out.data,
                            plan.out.get(), &plan.heuristic.algorithm, workspace_.get(), kWorkspaceBytes,
                            stream),
        "cublasLtMatmul");
  return true;
}

}  // namespace fastsae::cuda
