// Accuracy, special values and equal bits on every instruction set of cpp/math/elementary.h.
// Usage: elementary_test [--all] [--bench]; --all visits every float (minutes).
#include "math/elementary.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define FS_TEST_X86 1
#include <immintrin.h>
#endif

namespace {

using Limits = std::numeric_limits<float>;
using Loop = void (*)(const float*, float*, int);

constexpr float kInf = Limits::infinity();
constexpr float kNan = Limits::quiet_NaN();
constexpr int kBlock = 4099;  // odd, so that scalar remainders run too
constexpr int kIsas = 3;
constexpr const char* kIsaNames[kIsas] = {"baseline", "avx2", "avx512"};

#define AVX2 [[gnu::target("avx2,fma")]]
#define AVX512 [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,fma")]]
#define DEFINE_LOOP(attribute, suffix, function)                               \
  attribute void function##_##suffix(const float* in, float* out, int count) { \
    for (int i = 0; i < count; ++i) out[i] = fastsae::function(in[i]);         \
  }
#ifdef FS_TEST_X86
#define DEFINE_LOOPS(function)      \
  DEFINE_LOOP(, baseline, function) \
  DEFINE_LOOP(AVX2, avx2, function) \
  DEFINE_LOOP(AVX512, avx512, function)
#define LOOPS(function) {function##_baseline, function##_avx2, function##_avx512}
#else
#define DEFINE_LOOPS(function) DEFINE_LOOP(, baseline, function)
#define LOOPS(function) {function##_baseline, nullptr, nullptr}
#endif

DEFINE_LOOPS(exponential)
DEFINE_LOOPS(natural_log)
DEFINE_LOOPS(log1p_of)
DEFINE_LOOPS(tanh_of)
DEFINE_LOOPS(square_root)
DEFINE_LOOPS(absolute)

struct Function {
  const char* name;
  std::array<Loop, kIsas> loops;
  double (*reference)(double);
  double bound;                 // in ULP, as stated in elementary.h
  std::vector<float> specials;  // input, result, input, result ...
};

bool has_isa(int isa) {
#ifdef FS_TEST_X86
  if (isa == 1) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == 2) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == 0;
}

uint32_t bits_of(float x) { return fastsae::elementary::to_bits(x); }
float float_of(uint32_t bits) { return fastsae::elementary::from_bits(bits); }

// Equal bits, where every NaN counts as the same.
bool same(float a, float b) { return bits_of(a) == bits_of(b) || (std::isnan(a) && std::isnan(b)); }

double ulp_error(float got, double exact) {
  const float rounded = static_cast<float>(exact);
  if (same(got, rounded)) {
    if (std::isinf(rounded) || std::isnan(rounded)) return 0.0;
  } else if (std::isnan(got) || std::isnan(rounded)) {
    return HUGE_VAL;
  }
  if (exact == 0.0 || std::isinf(exact)) return same(got, rounded) ? 0.0 : HUGE_VAL;
  // The exponent field of a double is cheaper than frexp in a loop over all floats.
  uint64_t exact_bits;
  std::memcpy(&exact_bits, &exact, sizeof exact);
  const int exponent = std::clamp(static_cast<int>((exact_bits >> 52) & 0x7ff) - 1023, -126, 127);
  const uint64_t ulp_bits = static_cast<uint64_t>(exponent - 23 + 1023) << 52;
  double ulp;
  std::memcpy(&ulp, &ulp_bits, sizeof ulp);
  const double value = std::isinf(got) ? std::copysign(std::ldexp(1.0, 128), got) : got;
  return std::fabs(value - exact) / ulp;
}

struct Worst {
  double ulp = 0.0;
  float at = 0.0f;
};

class Checker {
 public:
  void check_all(const Function& function, bool all) {
    function_ = &function;
    worst_ = {};
    std::vector<float> in;
    in.reserve(kBlock);
    const auto push = [&](uint32_t bits) {
      in.push_back(float_of(bits));
      if (in.size() == kBlock) check_block(in);
    };
    const uint64_t stride = all ? 1 : 599;
    for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += stride) push(static_cast<uint32_t>(bits));
    // Neighbourhoods of the values where a formula or the range of the result changes.
    for (const float centre : {0.0f,        1.17549435e-38f, 0.17328680f,  0.34657359f, 0.41421356f, 0.5f,
                               0.70710678f, 0.29289322f,     1.0f,         1.41421356f, 9.0109133f,  10.0f,
                               87.336544f,  88.722839f,      89.0f,        103.27893f,  103.97208f,  105.0f,
                               16777216.0f, 2.4061596e38f,   3.4028235e38f}) {
      for (int step = -256; step <= 256; ++step) {
        const uint32_t bits = bits_of(centre) + static_cast<uint32_t>(step);
        push(bits & 0x7fffffffu);
        push(bits | 0x80000000u);
      }
    }
    check_block(in);
    check_specials();
    check_flushed();
    for (int isa = 0; isa < kIsas; ++isa) {
      if (!has_isa(isa)) continue;
      std::printf("%-12s %-9s max %.4f ULP at %.9g\n", function.name, kIsaNames[isa], worst_[isa].ulp,
                  static_cast<double>(worst_[isa].at));
      if (!(worst_[isa].ulp <= function.bound)) fail(isa, worst_[isa].at, "beyond the bound");
    }
  }

  int failures() const { return failures_; }

 private:
  void fail(int isa, float at, const char* what) {
    if (++failures_ > 50) return;
    std::printf("FAIL %s %s at %.9g (0x%08x): %s\n", function_->name, kIsaNames[isa], static_cast<double>(at),
                bits_of(at), what);
  }

  void check_block(std::vector<float>& in) {
    const int count = static_cast<int>(in.size());
    for (int isa = 0; isa < kIsas; ++isa) {
      if (has_isa(isa)) function_->loops[isa](in.data(), out_[isa].data(), count);
    }
    for (int i = 0; i < count; ++i) {
      const double exact = function_->reference(in[i]);
      for (int isa = 0; isa < kIsas; ++isa) {
        if (!has_isa(isa)) continue;
        const float got = out_[isa][i];
        const double error = ulp_error(got, exact);
        if (error > worst_[isa].ulp) worst_[isa] = {error, in[i]};
        if (!same(got, out_[0][i])) fail(isa, in[i], "bits differ from the baseline");
      }
    }
    in.clear();
  }

  void check_specials() {
    for (size_t s = 0; s + 1 < function_->specials.size(); s += 2) {
      const float input = function_->specials[s], expected = function_->specials[s + 1];
      for (int isa = 0; isa < kIsas; ++isa) {
        if (!has_isa(isa)) continue;
        // 19 copies reach vector lanes and the scalar remainder.
        std::array<float, 19> in, out;
        in.fill(input);
        function_->loops[isa](in.data(), out.data(), static_cast<int>(in.size()));
        for (const float got : out) {
          if (!same(got, expected)) fail(isa, input, "wrong special value");
        }
      }
    }
  }

  // The library computes with denormals flushed: normal in and out keeps its bits, a subnormal is a zero.
  void check_flushed() {
#ifdef FS_TEST_X86
    const auto is_subnormal = [](float x) {
      return (bits_of(x) & 0x7f800000u) == 0 && (bits_of(x) << 1) != 0;
    };
    std::vector<float> in, zeroed;
    for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65519) {
      in.push_back(float_of(static_cast<uint32_t>(bits)));
    }
    for (const uint32_t bits : {1u, 0x007fffffu, 0x00800000u, 0x00800001u, 0x01000000u}) {
      in.push_back(float_of(bits));
      in.push_back(float_of(bits | 0x80000000u));
    }
    const int count = static_cast<int>(in.size());
    for (const float x : in) zeroed.push_back(is_subnormal(x) ? float_of(bits_of(x) & 0x80000000u) : x);
    std::vector<float> expected(in.size()), got(in.size());
    function_->loops[0](zeroed.data(), expected.data(), count);
    for (int isa = 0; isa < kIsas; ++isa) {
      if (!has_isa(isa)) continue;
      const unsigned saved = _mm_getcsr();
      _mm_setcsr(saved | 0x8040u);
      function_->loops[isa](in.data(), got.data(), count);
      _mm_setcsr(saved);
      for (int i = 0; i < count; ++i) {
        const bool flushed = is_subnormal(expected[i]) && (bits_of(got[i]) << 1) == 0;
        // absolute() only clears a bit, so it may leave a subnormal as it is.
        const bool kept = is_subnormal(in[i]) && bits_of(got[i]) == (bits_of(in[i]) & 0x7fffffffu);
        if (!flushed && !kept && !same(got[i], expected[i])) fail(isa, in[i], "wrong with FTZ and DAZ");
      }
    }
#endif
  }

  const Function* function_ = nullptr;
  std::array<Worst, kIsas> worst_{};
  std::array<std::array<float, kBlock>, kIsas> out_{};
  int failures_ = 0;
};

const std::vector<Function>& functions() {
  constexpr float kTiny = Limits::denorm_min();
  static const std::vector<Function> list = {
      {"exponential",
       LOOPS(exponential),
       [](double x) { return std::exp(x); },
       1.01,
       {kInf,  kInf, -kInf,       0.0f, kNan,  kNan, -kNan,   kNan,  0.0f,    1.0f, -0.0f,  1.0f,
        kTiny, 1.0f, 88.7228394f, kInf, 1e30f, kInf, -103.2f, kTiny, -104.0f, 0.0f, -1e30f, 0.0f}},
      {"natural_log",
       LOOPS(natural_log),
       [](double x) { return std::log(x); },
       0.85,
       {kInf,  kInf,  -kInf, kNan, kNan,  kNan, -kNan,  kNan, 0.0f,  -kInf,
        -0.0f, -kInf, 1.0f,  0.0f, -1.0f, kNan, -kTiny, kNan, kTiny, -103.278931f}},
      {"log1p_of",
       LOOPS(log1p_of),
       [](double x) { return std::log1p(x); },
       1.41,
       {kInf,  kInf,  -kInf,  kNan,   kNan,  kNan,  -kNan,        kNan, 0.0f,  0.0f, -0.0f,  -0.0f,
        kTiny, kTiny, -kTiny, -kTiny, -1.0f, -kInf, -1.00000012f, kNan, -2.0f, kNan, -1e30f, kNan}},
      {"tanh_of",
       LOOPS(tanh_of),
       [](double x) { return std::tanh(x); },
       2.47,
       {kInf,  1.0f,  -kInf,  -1.0f,  kNan,  kNan, -kNan,  kNan,  0.0f,  0.0f, -0.0f,  -0.0f,
        kTiny, kTiny, -kTiny, -kTiny, 9.02f, 1.0f, -9.02f, -1.0f, 1e30f, 1.0f, -1e30f, -1.0f}},
      {"square_root",
       LOOPS(square_root),
       [](double x) { return std::sqrt(x); },
       0.5,
       {kInf, kInf, -1.0f, kNan, kNan, kNan, -0.0f, -0.0f, 4.0f, 2.0f}},
      {"absolute",
       LOOPS(absolute),
       [](double x) { return std::fabs(x); },
       0.0,
       {-kInf, kInf, kNan, kNan, -0.0f, 0.0f, -kTiny, kTiny, -3.0f, 3.0f}},
  };
  return list;
}

template <class T>
int check_pairs() {
  using fastsae::maximum;
  using fastsae::minimum;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const bool right = maximum(T(1), T(2)) == 2 && maximum(T(2), T(1)) == 2 && minimum(T(1), T(2)) == 1 &&
                     minimum(T(2), T(1)) == 1 && maximum(-inf, T(3)) == 3 && minimum(inf, T(3)) == 3 &&
                     std::isnan(maximum(nan, T(1))) && std::isnan(maximum(T(1), nan)) &&
                     std::isnan(minimum(nan, T(1))) && std::isnan(minimum(T(1), nan));
  if (!right) std::printf("FAIL maximum or minimum\n");
  return right ? 0 : 1;
}

int check_double() {
  const double x = 0.3;
  const bool right = fastsae::exponential(x) == std::exp(x) && fastsae::natural_log(x) == std::log(x) &&
                     fastsae::log1p_of(x) == std::log1p(x) && fastsae::tanh_of(x) == std::tanh(x) &&
                     fastsae::square_root(x) == std::sqrt(x) && fastsae::absolute(-x) == x;
  if (!right) std::printf("FAIL a double function is not libm's\n");
  return right ? 0 : 1;
}

void bench(const Function& function) {
  constexpr int kCount = 2048, kRepeats = 2000;
  std::vector<float> in(kCount), out(kCount);
  for (int i = 0; i < kCount; ++i) in[i] = 0.001f + 8.0f * static_cast<float>(i) / kCount;
  for (int isa = 0; isa < kIsas; ++isa) {
    if (!has_isa(isa)) continue;
    double best = HUGE_VAL;
    for (int trial = 0; trial < 15; ++trial) {
      const auto start = std::chrono::steady_clock::now();
      for (int r = 0; r < kRepeats; ++r) function.loops[isa](in.data(), out.data(), kCount);
      const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
      best = std::min(best, spent.count() / kRepeats / kCount);
    }
    std::printf("%-12s %-9s %.3f ns per element\n", function.name, kIsaNames[isa], best);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = argc > 1 && std::strcmp(argv[1], "--all") == 0;
  const bool timing = argc > 1 && std::strcmp(argv[1], "--bench") == 0;
  Checker checker;
  for (const Function& function : functions()) {
    if (timing) {
      bench(function);
    } else {
      checker.check_all(function, all);
    }
  }
  const int failures = checker.failures() + check_pairs<float>() + check_pairs<double>() + check_double();
  std::printf(failures == 0 ? "ok\n" : "%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
