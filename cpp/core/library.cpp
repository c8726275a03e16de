#include "core/library.h"

#include <dlfcn.h>

#include "core/error.h"

namespace fastsae {
namespace {

int open_mode(Library::Symbols symbols) {
// The sanitizers do not allow DEEPBIND.
#if defined(RTLD_DEEPBIND) && !defined(FASTSAE_SANITIZE)
  if (symbols == Library::Symbols::own) return RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif
  (void)symbols;
  return RTLD_NOW | RTLD_LOCAL;
}

}  // namespace

Library::Library(const std::string& path, Symbols symbols)
    : handle_(dlopen(path.c_str(), open_mode(symbols))), path_(path) {
  if (handle_ == nullptr) throw DeviceError(text("could not open a library: ", dlerror()));
}

bool Library::can_open(const std::string& path) {
  return dlopen(path.c_str(), open_mode(Symbols::shared)) != nullptr;  // kept open: it is about to be used
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
