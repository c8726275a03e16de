// Shared libraries opened at run time.
#pragma once

#include <string>

namespace fastsae {

class Library {
 public:
  enum class Symbols {
    own,    // its own symbols come first: a private copy of what others may load too
    shared  // C++ types and exceptions are the same on both sides
  };

  // DeviceError if it cannot be opened.
  Library(const std::string& path, Symbols symbols);
  static bool can_open(const std::string& path);

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
