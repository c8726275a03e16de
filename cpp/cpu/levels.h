// One loop in the instruction set that this process uses.
#pragma once

#include "cpu/loops.h"
#include "cpu/partition.h"

namespace fastsae::cpu {

// A Job has an always-inlined operator()(Range) const.
template <class Job>
void run_baseline(const Job& job, Range range) {
  job(range);
}

#if defined(__x86_64__)
template <class Job>
[[gnu::target("avx2,fma")]] void run_avx2(const Job& job, Range range) {
  job(range);
}
template <class Job>
[[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")]] void run_avx512(
    const Job& job, Range range) {
  job(range);
}
#else
template <class Job>
constexpr auto run_avx2 = run_baseline<Job>;
template <class Job>
constexpr auto run_avx512 = run_baseline<Job>;
#endif

template <class Job>
void run_at_level(const Job& job, Range range) {
  if (isa() == Isa::avx512) return run_avx512(job, range);
  if (isa() == Isa::avx2) return run_avx2(job, range);
  run_baseline(job, range);
}

}  // namespace fastsae::cpu
