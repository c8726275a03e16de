#include "core/library.h"

#include <dlfcn.h>

#include <sstream>

#include "core/error.h"

namespace fastsae {
namespace {

// DEEPBIND keeps a private copy from taking the symbols of another copy in the process. The sanitizers do not
// allow it.
#if defined(RTLD_DEEPBIND) && !defined(FASTSAE_SANITIZE)
constexpr int kOpenMode = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#else
constexpr int kOpenMode = RTLD_NOW | RTLD_LOCAL;
#endif

}  // namespace

Library::Library(const std::string& paths) {
  std::istringstream list(paths);
  std::string path, reasons;
  while (std::getline(list, path, '|')) {
    if (path.empty()) continue;
    handle_ = dlopen(path.c_str(), kOpenMode);
    path_ = path;
    if (handle_ != nullptr) return;
    reasons += text("\n  ", dlerror());
  }
  throw DeviceError("could not open a library:" + reasons);
}

void* Library::symbol(const std::string& name) const {
  void* address = dlsym(handle_, name.c_str());
  if (address == nullptr) throw DeviceError(text(path_, " has no symbol ", name));
  return address;
}

std::string own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return "";
  const std::string path = info.dli_fname;
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "./" : path.substr(0, slash + 1);
}

}  // namespace fastsae
