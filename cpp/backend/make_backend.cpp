#include "backend/backend.h"
#include "core/error.h"
#include "cpu/cpu_backend.h"

namespace fastsae {

std::unique_ptr<Backend> make_backend(const std::string& device, Poll poll) {
  if (device == "cpu" || device == "auto") return cpu::make_cpu_backend(std::move(poll));
  if (device == "cuda") throw DeviceError("device='cuda': this build has no CUDA backend; use device='cpu'");
  throw ValueError(text("device: expected 'auto', 'cpu' or 'cuda', got '", device, "'"));
}

}  // namespace fastsae
