// The exceptions that cross into Python, and the check that raises the commonest of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fastsae {

// ValueError: the text names the argument, what was got and what was wanted.
struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// MemoryError: says how many bytes were asked for and how many were free.
struct MemoryError : std::bad_alloc {
  MemoryError(std::size_t asked, std::size_t free)
      : text("could not allocate " + std::to_string(asked) + " bytes; " + std::to_string(free) +
             " bytes are free") {}
  const char* what() const noexcept override { return text.c_str(); }
  std::string text;
};

// DeviceError: a device or one of its libraries cannot be used.
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// FloatingPointError: a batch gave a loss or a gradient that is not finite; the model was left as it was.
struct NonFiniteError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

}  // namespace fastsae

#define FS_REQUIRE(condition, ...) \
  if (!(condition)) throw ::fastsae::ValueError(::fastsae::text(__VA_ARGS__))
