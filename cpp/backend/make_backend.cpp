// The one place that names devices.
#include <charconv>
#include <optional>

#include "backend/backend.h"
#include "backend/plugin.h"
#include "backend/process.h"
#include "core/error.h"
#include "core/library.h"
#include "cpu/bf16.h"
#include "cpu/blas.h"
#include "cpu/cpu_backend.h"
#include "cpu/loops.h"
#include "cpu/pool.h"
#include "cpu/provider.h"

namespace fastsae {
namespace {

// The CUDA backend is a library of its own beside this one, so that one build serves machines with and without a GPU.
struct CudaPlugin {
  std::optional<Library> library;
  MakeCudaBackend make = nullptr;
  int devices = 0;
  std::string reason;  // why there is no device

  CudaPlugin() {
    if (!FASTSAE_HAS_CUDA) {
      reason = "this build has no CUDA backend";
      return;
    }
    if (!Library::can_open("libcuda.so.1")) {
      reason = "there is no NVIDIA driver (libcuda.so.1)";
      return;
    }
    try {
      library.emplace(own_folder() + "libfastsae_cuda.so", Library::Symbols::shared);
      make = library->function<MakeCudaBackend>("fastsae_cuda_backend");
      devices = library->function<CountCudaDevices>("fastsae_cuda_devices")(&reason);
    } catch (const DeviceError& error) {
      reason = error.what();
    }
  }
};

const CudaPlugin& cuda_plugin() {
  static const CudaPlugin* plugin = new CudaPlugin;  // never closed
  return *plugin;
}

// The number in "cuda" or "cuda:N", or -1.
int cuda_index(const std::string& device) {
  if (device == "cuda") return 0;
  if (device.rfind("cuda:", 0) != 0) return -1;
  int index = -1;
  const char* end = device.data() + device.size();
  const auto [stop, error] = std::from_chars(device.data() + 5, end, index);
  return error == std::errc() && stop == end ? index : -1;
}

}  // namespace

std::vector<std::string> devices() {
  std::vector<std::string> names{"cpu"};
  for (int i = 0; i < cuda_plugin().devices; ++i) names.push_back(text("cuda:", i));
  return names;
}

std::string cuda_unavailable_reason() { return cuda_plugin().devices > 0 ? "" : cuda_plugin().reason; }

std::string cuda_blas_name() {
  std::string name;
  if (cuda_plugin().devices > 0) cuda_plugin().library->function<NameCudaBlas>("fastsae_cuda_blas")(&name);
  return name;
}

std::unique_ptr<Backend> make_backend(const std::string& device, Precision precision, Poll poll) {
  // "auto" is the CPU until the CUDA backend has passed the tests on a GPU.
  if (device == "cpu" || device == "auto") {
    if (precision == Precision::tf32)
      throw DeviceError(text("device='", device, "': the CPU takes precision='full' or 'bf16', got 'tf32'"));
    if (precision == Precision::bf16 && cpu::bf16_unit() == nullptr)
      throw DeviceError(
          text("device='", device, "': precision='bf16' needs AVX512_BF16, which ",
               cpu::isa() == cpu::Isa::avx512 ? "this processor lacks" : "is off below FASTSAE_ISA=avx512",
               "; take precision='full'"));
    return cpu::make_cpu_backend(precision, std::move(poll));
  }
  const int index = cuda_index(device);
  FS_REQUIRE(index >= 0, "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got '", device, "'");
  const CudaPlugin& plugin = cuda_plugin();
  if (index >= plugin.devices) {
    throw DeviceError(plugin.devices == 0
                          ? text("device='", device, "': ", plugin.reason)
                          : text("device='", device, "': there are ", plugin.devices, " devices"));
  }
  return std::unique_ptr<Backend>(plugin.make(FASTSAE_CONTRACT, index, precision, &poll));
}

int num_threads() { return cpu::num_threads(); }
void set_num_threads(int count) { cpu::set_num_threads(count); }
void limit_threads_here(int count) { cpu::limit_threads_here(count); }
const char* product_provider(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n,
                             std::int64_t k, DType dtype) {
  return cpu::provider_for(transpose_a, transpose_b, m, n, k, dtype) == cpu::Provider::panels ? "panels"
                                                                                              : "blas";
}
const char* isa_name() { return cpu::isa_name(cpu::isa()); }
const char* blas_name() { return cpu::blas_name(); }
std::optional<std::string> bf16_unit() {
  if (const char* name = cpu::bf16_unit()) return name;
  return {};
}

}  // namespace fastsae
