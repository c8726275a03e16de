// Shared libraries opened at run time.
#pragma once

#include <string>

namespace fastsae {

class Library {
 public:
  // Opens the first of the '|'-separated paths that can be opened; "" is tried nowhere. DeviceError
  // otherwise.
  explicit Library(const std::string& paths);
  // DeviceError if the symbol is missing.
  void* symbol(const std::string& name) const;
  template <class F>
  F function(const std::string& name) const {
    return reinterpret_cast<F>(symbol(name));
  }

 private:
  void* handle_ = nullptr;
  std::string path_;
};

// The folder of the library or program that this code is in, with a closing slash.
std::string own_folder();

}  // namespace fastsae
