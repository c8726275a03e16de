// Floating-point control of the calling thread: flush denormals, so that moments that decay to nothing do not
// slow the update tenfold.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastsae::cpu {

#if defined(__x86_64__)
inline std::uint32_t get_float_mode() { return _mm_getcsr(); }
inline void set_float_mode(std::uint32_t mode) { _mm_setcsr(mode); }
inline constexpr std::uint32_t kFlushDenormals = 0x8040;  // FTZ and DAZ
inline void pause() { _mm_pause(); }
#elif defined(__aarch64__)
inline std::uint32_t get_float_mode() {
  std::uint64_t mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return static_cast<std::uint32_t>(mode);
}
inline void set_float_mode(std::uint32_t mode) {
  asm volatile("msr fpcr, %0" : : "r"(static_cast<std::uint64_t>(mode)));
}
inline constexpr std::uint32_t kFlushDenormals = 1u << 24;
inline void pause() { asm volatile("yield"); }
#else
inline std::uint32_t get_float_mode() { return 0; }
inline void set_float_mode(std::uint32_t) {}
inline constexpr std::uint32_t kFlushDenormals = 0;
inline void pause() {}
#endif

// Flushes denormals while it lives.
class FlushDenormals {
 public:
  FlushDenormals() : before_(get_float_mode()) { set_float_mode(before_ | kFlushDenormals); }
  ~FlushDenormals() { set_float_mode(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  std::uint32_t before_;
};

}  // namespace fastsae::cpu
