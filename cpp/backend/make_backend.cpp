// The one place that names devices.
#include "backend/backend.h"
#include "backend/process.h"
#include "core/error.h"
#include "cpu/blas.h"
#include "cpu/cpu_backend.h"
#include "cpu/loops.h"
#include "cpu/pool.h"

namespace fastsae {

std::unique_ptr<Backend> make_backend(const std::string& device, Poll poll) {
  if (device == "cpu" || device == "auto") return cpu::make_cpu_backend(std::move(poll));
  if (device == "cuda") throw DeviceError("device='cuda': this build has no CUDA backend; use device='cpu'");
  throw ValueError(text("device: expected 'auto', 'cpu' or 'cuda', got '", device, "'"));
}

int num_threads() { return cpu::num_threads(); }
void set_num_threads(int count) { cpu::set_num_threads(count); }
const char* isa_name() { return cpu::isa_name(cpu::isa()); }
const char* blas_name() { return cpu::blas_name(); }

}  // namespace fastsae
