#include "cpu/pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"
#include "cpu/float_mode.h"

namespace fastsae::cpu {
namespace {

constexpr int kSpins = 2000;  // about the time between two products of a small model
constexpr int kMaxThreads = 1024;

std::atomic<int> requested_threads{0};
thread_local int limit_here = 0;

int positive_from_environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? 0 : std::clamp(std::atoi(value), 0, kMaxThreads);
}

// CPUs' worth of time that the container may use, or 0 if there is no limit.
int cgroup_quota() {
  std::ifstream unified("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (unified >> quota >> period && quota != "max" && period > 0) {
    return std::max(1, static_cast<int>(std::ceil(std::atof(quota.c_str()) / period)));
  }
  std::ifstream quota_v1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
      period_v1("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double used = 0;
  if (quota_v1 >> used && period_v1 >> period && used > 0 && period > 0) {
    return std::max(1, static_cast<int>(std::ceil(used / period)));
  }
  return 0;
}

int processors() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) count = CPU_COUNT(&set);
#endif
  if (const int quota = cgroup_quota(); quota > 0) count = std::min(count, quota);
  return std::clamp(count, 1, kMaxThreads);
}

// How many forks lie between this process and the one that first asked; getpid() would be a system call.
std::uint32_t forks() {
  static std::atomic<std::uint32_t> count{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { count.fetch_add(1); });
  (void)registered;
  return count.load(std::memory_order_relaxed);
}

int current_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves the calling thread off a processor, if there are enough for all threads. Two threads that wake each other are
// taken for one piece of work and left on one processor, where each waits for the other to give up spinning.
void leave_processor(int processor, int threads) {
#if defined(__linux__)
  cpu_set_t allowed, now;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < threads) return;
  cpu_set_t others = allowed;
  CPU_CLR(processor, &others);
  (void)sched_setaffinity(0, sizeof(others), &others);
  // Somebody else's choice, made in between, stays.
  if (sched_getaffinity(0, sizeof(now), &now) == 0 && CPU_EQUAL(&now, &others))
    (void)sched_setaffinity(0, sizeof(allowed), &allowed);
#else
  (void)processor;
  (void)threads;
#endif
}

struct Release {
  std::atomic<bool>& busy;
  ~Release() { busy.store(false, std::memory_order_release); }
};

}  // namespace

int num_threads() {
  if (const int count = requested_threads.load(std::memory_order_relaxed)) return count;
  static const int initial = [] {
    if (const int count = positive_from_environment("FASTSAE_NUM_THREADS")) return count;
    if (const int count = positive_from_environment("OMP_NUM_THREADS")) return count;
    return processors();
  }();
  return initial;
}

void set_num_threads(int count) {
  FS_REQUIRE(count >= 1 && count <= kMaxThreads, "num_threads: expected an integer in [1, ", kMaxThreads,
             "], got ", count);
  requested_threads = count;
}

void limit_threads_here(int count) {
  FS_REQUIRE(count >= 0, "threads: expected an integer >= 0, got ", count);
  limit_here = count;
}

int threads_here() { return limit_here > 0 ? std::min(limit_here, num_threads()) : num_threads(); }

struct Pool::Crew {
  explicit Crew(int threads) : born_after(forks()), wanted(threads), size(threads) {
    workers.reserve(static_cast<std::size_t>(threads - 1));
    try {
      for (int i = 1; i < threads; ++i) workers.emplace_back([this, i] { work(i); });
    } catch (const std::exception&) {
      size = static_cast<int>(workers.size()) + 1;
    }
  }

  ~Crew() {
    stop = true;
    announce();
    for (std::thread& worker : workers) worker.join();
  }

  void announce() {
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
  }

  // Spins a little, then sleeps, until the value is no longer `seen`. Who shares a processor with the one that is waited
  // for must not spin.
  static void await_change(const std::atomic<std::uint32_t>& value, std::uint32_t seen, bool shares) {
    for (int i = 0; i < kSpins && !shares; ++i) {
      if (value.load(std::memory_order_acquire) != seen) return;
      pause();
    }
    while (value.load(std::memory_order_acquire) == seen) value.wait(seen, std::memory_order_acquire);
  }

  void work(int index) {
    std::uint32_t seen = 0;
    bool shares = false;
    for (;;) {
      await_change(round, seen, shares);
      ++seen;
      if (stop) return;
      shares = processor >= 0 && processor == current_processor();
      if (shares) {
        sharing.store(true, std::memory_order_relaxed);
        leave_processor(processor, size);
      }
      if (get_float_mode() != float_mode) set_float_mode(float_mode);
      share(index, [] {});
      finished.fetch_add(1, std::memory_order_acq_rel);
      finished.notify_all();
    }
  }

  template <class Between>
  void share(int index, const Between& between) {
    const int place = size - 1 - index;  // the last share is never empty, and is the caller's
    const std::int64_t begin = count * place / size, end = count * (place + 1) / size;
    try {
      for (std::int64_t i = begin; i < end && !failed.load(std::memory_order_relaxed); ++i) {
        (*task)(i);
        between();
      }
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  }

  void run(std::int64_t tasks, const Task& body, const std::function<void()>& between) {
    task = &body;
    count = tasks;
    failed.store(false, std::memory_order_relaxed);
    error = nullptr;
    float_mode = get_float_mode();
    processor = current_processor();
    const bool shares = sharing.exchange(false, std::memory_order_relaxed);
    to_finish += static_cast<std::uint32_t>(size - 1);
    if (size > 1) announce();
    share(0, between);
    for (std::uint32_t seen; (seen = finished.load(std::memory_order_acquire)) != to_finish;)
      await_change(finished, seen, shares);
    if (error) std::rethrow_exception(std::exchange(error, nullptr));
  }

  const std::uint32_t born_after;
  const int wanted;
  std::uint32_t to_finish = 0;
  int size;  // less than wanted where the system gives fewer threads
  std::vector<std::thread> workers;
  // What the caller writes and the workers read, and what they write back, on lines of their own.
  alignas(64) std::atomic<std::uint32_t> round{0};
  const Task* task = nullptr;
  std::int64_t count = 0;
  std::uint32_t float_mode = 0;
  int processor = -1;  // of the caller
  bool stop = false;
  std::atomic<bool> failed{false};
  alignas(64) std::atomic<std::uint32_t> finished{0};  // shares of all rounds
  std::atomic<bool> sharing{false};                    // a worker was found on the caller's processor
  alignas(64) std::exception_ptr error;
};

Pool::Pool() = default;

Pool::~Pool() {
  if (crew_ && crew_->born_after != forks()) (void)crew_.release();  // its threads live in the parent
}

Pool::Crew* Pool::crew(int threads) {
  if (crew_ && crew_->born_after != forks()) (void)crew_.release();
  if (!crew_ || crew_->wanted != threads) {
    crew_.reset();
    crew_ = std::make_unique<Crew>(threads);
  }
  return crew_.get();
}

void Pool::run(std::int64_t count, const Task& task, const std::function<void()>& between) {
  const int threads = threads_here();
  if (threads > 1 && count > 1 && !busy_.exchange(true, std::memory_order_acquire)) {
    const Release release{busy_};
    return crew(threads)->run(count, task, between);
  }
  for (std::int64_t i = 0; i < count; ++i) {
    task(i);
    between();
  }
}

}  // namespace fastsae::cpu
