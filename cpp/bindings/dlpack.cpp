#include "bindings/dlpack.h"

#include <algorithm>
#include <memory>

#include "core/error.h"

namespace py = pybind11;

namespace fastsae {
namespace {

struct DlType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct DlTensor {
  void* data;
  Place device;
  std::int32_t ndim;
  DlType dtype;
  std::int64_t* shape;
  std::int64_t* strides;  // in elements; null: dense
  std::uint64_t byte_offset;
};

struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};

struct DlVersioned {
  std::uint32_t major, minor;
  void* context;
  void (*deleter)(DlVersioned*);
  std::uint64_t flags;
  DlTensor tensor;
};

constexpr std::uint64_t kReadOnly = 1;
constexpr std::uint32_t kMajor = 1, kMinor = 0;
constexpr std::uint8_t kIntCode = 0, kFloatCode = 2, kBfloatCode = 4;

// What differs between the two forms of the protocol.
template <class Managed>
struct Names;
template <>
struct Names<DlManaged> {
  static constexpr const char *fresh = "dltensor", *used = "used_dltensor";
};
template <>
struct Names<DlVersioned> {
  static constexpr const char *fresh = "dltensor_versioned", *used = "used_dltensor_versioned";
};

DType dtype_from(const std::string& name, DlType type) {
  const bool brain = type.code == kBfloatCode && type.bits == 16, real = type.code == kFloatCode;
  if (type.lanes == 1 && brain) return DType::bf16;
  if (type.lanes == 1 && type.code == kIntCode && type.bits == 32) return DType::i32;
  if (type.lanes == 1 && real && type.bits == 16) return DType::f16;
  if (type.lanes == 1 && real && type.bits == 32) return DType::f32;
  if (type.lanes == 1 && real && type.bits == 64) return DType::f64;
  throw ValueError(text(name,
                        ": expected float32, float64, float16 or bfloat16, got elements of DLPack's type ",
                        int{type.code}, " with ", int{type.bits}, " bits"));
}

DlType type_of(DType dtype) {
  const std::uint8_t code = dtype == DType::bf16 ? kBfloatCode : dtype == DType::i32 ? kIntCode : kFloatCode;
  return {code, static_cast<std::uint8_t>(8 * size_of(dtype)), 1};
}

// The tensor as rows; the memory is added by the caller.
DeviceArray as_rows(const std::string& name, const DlTensor& from) {
  FS_REQUIRE(from.ndim == 1 || from.ndim == 2, name, ": expected one or two dimensions, got ", from.ndim);
  DeviceArray array;
  array.vector = from.ndim == 1;
  array.place = from.device;
  Tensor& to = array.tensor;
  to.dtype = dtype_from(name, from.dtype);
  to.rows = from.shape[0];
  to.cols = array.vector ? 1 : from.shape[1];
  FS_REQUIRE(to.rows >= 0 && to.cols >= 0, name, ": expected sizes >= 0, got ", to.rows, " x ", to.cols);
  const bool strided = from.strides != nullptr;
  to.stride = strided && to.rows > 1 ? from.strides[0] : to.cols;
  const std::int64_t step = strided && !array.vector && to.cols > 1 ? from.strides[1] : 1;
  FS_REQUIRE(to.size() == 0 || (step == 1 && to.stride >= 0), name,
             ": expected rows that are contiguous in memory, got strides of ", to.stride, " and ", step,
             " elements");
  to.data = static_cast<std::byte*>(from.data) + from.byte_offset;
  FS_REQUIRE(reinterpret_cast<std::uintptr_t>(to.data) % size_of(to.dtype) == 0, name,
             ": expected elements at multiples of their size in memory");
  return array;
}

template <class Managed>
Memory own(Managed* managed) {
  return Memory(managed, [](void* memory) {
    auto* mine = static_cast<Managed*>(memory);
    if (mine->deleter != nullptr) mine->deleter(mine);
  });
}

// Takes what is in the capsule, if it is of this form. From here on it is ours to delete, once.
template <class Managed>
Managed* taken(const py::object& capsule) {
  if (PyCapsule_IsValid(capsule.ptr(), Names<Managed>::fresh) == 0) return nullptr;
  auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), Names<Managed>::fresh));
  if (PyCapsule_SetName(capsule.ptr(), Names<Managed>::used) != 0) throw py::error_already_set();
  return managed;
}

DeviceArray consume(const std::string& name, const py::object& capsule) {
  if (auto* managed = taken<DlVersioned>(capsule)) {
    const Memory memory = own(managed);
    FS_REQUIRE(managed->major == kMajor, name, ": expected DLPack version 1, got version ", managed->major);
    DeviceArray array = as_rows(name, managed->tensor);
    array.memory = memory;
    array.read_only = (managed->flags & kReadOnly) != 0;
    return array;
  }
  auto* managed = taken<DlManaged>(capsule);
  FS_REQUIRE(managed != nullptr, name, ": expected __dlpack__ to give an unused DLPack capsule, got ",
             py::repr(capsule).cast<std::string>());
  const Memory memory = own(managed);
  DeviceArray array = as_rows(name, managed->tensor);
  array.memory = memory;
  return array;
}

// A producer from before versions takes no max_version.
py::object ask(const py::object& producer, void* stream) {
  py::dict options;
  if (stream != nullptr) options["stream"] = reinterpret_cast<std::intptr_t>(stream);
  const py::object method = producer.attr("__dlpack__");
  try {
    return method(**options, py::arg("max_version") = py::make_tuple(kMajor, kMinor));
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
  }
  return method(**options);
}

// What one capsule owns.
template <class Managed>
struct Exported {
  Memory memory;
  std::int64_t shape[2], strides[2];
  Managed managed{};

  explicit Exported(const DeviceArray& array)
      : memory(array.memory), shape{array.tensor.rows, array.tensor.cols}, strides{array.tensor.stride, 1} {
    managed.tensor = {
        array.tensor.data, array.place, array.vector ? 1 : 2, type_of(array.tensor.dtype), shape, strides, 0};
    managed.context = this;
    managed.deleter = [](Managed* mine) { delete static_cast<Exported*>(mine->context); };
  }
};

template <class Managed>
py::capsule in_capsule(std::unique_ptr<Exported<Managed>> exported) {
  PyObject* made = PyCapsule_New(&exported->managed, Names<Managed>::fresh, [](PyObject* capsule) {
    if (PyCapsule_IsValid(capsule, Names<Managed>::fresh) == 0) return;  // a consumer has taken it
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule, Names<Managed>::fresh));
    managed->deleter(managed);
  });
  if (made == nullptr) throw py::error_already_set();
  (void)exported.release();
  return py::reinterpret_steal<py::capsule>(made);
}

}  // namespace

std::string place_name(Place place) {
  if (place.type == 1) return "cpu";
  if (place.type == 2) return text("cuda:", place.id);
  return text("device ", place.id, " of DLPack's type ", place.type);
}

const char* dtype_name(DType dtype) {
  if (dtype == DType::bf16) return "bfloat16";
  if (dtype == DType::i32) return "int32";
  if (dtype == DType::f16) return "float16";
  if (dtype == DType::u8) return "uint8";
  return dtype == DType::f32 ? "float32" : "float64";
}

DeviceArray from_dlpack(const std::string& name, const py::object& producer, Place wanted, FetchRows fetch,
                        const WithQueue& with_queue) {
  const std::string kind = py::type::of(producer).attr("__name__").cast<std::string>();
  const std::string host =
      wanted == Place{} ? "in CPU memory" : text("on ", place_name(wanted), " or in CPU memory");
  const auto refuse = [&](const std::string& got) {
    throw ValueError(text(name, ": expected a tensor ", host, ", got ", kind, got));
  };
  py::object capsule;
  try {
    const auto [type, id] = producer.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    if (!(Place{type, id} == wanted)) refuse(text(" on ", place_name({type, id})));
    with_queue([&](void* stream) { capsule = ask(producer, stream); });
  } catch (const py::cast_error&) {
    refuse(", whose __dlpack_device__ does not give two integers");
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;  // Ctrl-C
    refuse(": " + py::str(error.value()).cast<std::string>());
  }
  DeviceArray array = consume(name, capsule);
  if (!(array.place == wanted)) refuse(text(", whose capsule says ", place_name(array.place)));
  array.fetch = fetch;
  return array;
}

py::capsule to_dlpack(const DeviceArray& array, const std::optional<std::pair<int, int>>& max_version) {
  if (max_version && max_version->first >= static_cast<int>(kMajor)) {
    auto exported = std::make_unique<Exported<DlVersioned>>(array);
    exported->managed.major = kMajor;
    exported->managed.minor = kMinor;
    exported->managed.flags = array.read_only ? kReadOnly : 0;
    return in_capsule(std::move(exported));
  }
  if (array.read_only) {
    throw py::buffer_error("a read-only array needs a consumer that knows DLPack 1.0");
  }
  return in_capsule(std::make_unique<Exported<DlManaged>>(array));
}

}  // namespace fastsae
