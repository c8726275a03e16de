// The thread pool of the CPU backend.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace fastsae::cpu {

// Process-wide number of threads for pools: set_num_threads, else FASTSAE_NUM_THREADS, else OMP_NUM_THREADS,
// else the processors this process may use (affinity and cgroup quota).
int num_threads();
void set_num_threads(int count);
// At most so many for what the calling thread asks for; 0 is no limit.
void limit_threads_here(int count);
// How many it gets.
int threads_here();

// A function of a task's number that is kept elsewhere, for as long as a call lasts: nothing is allocated.
class Task {
 public:
  template <class F>
  Task(const F& function)
      : function_(&function),
        call_([](const void* f, std::int64_t task) { (*static_cast<const F*>(f))(task); }) {}
  void operator()(std::int64_t task) const { call_(function_, task); }

 private:
  const void* function_;
  void (*call_)(const void*, std::int64_t);
};

// Runs tasks on a crew of threads that is started on first use. Each thread takes a contiguous, fixed share,
// so what a task computes never depends on who runs it. A busy pool, or one inherited by a forked child,
// makes the caller run alone or start a new crew.
class Pool {
 public:
  Pool();
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // Calls task(0 .. count-1); `between` runs on the calling thread after each of its own tasks and may throw,
  // which drops the tasks not yet begun. The first exception is rethrown once all threads have stopped.
  void run(std::int64_t count, const Task& task, const std::function<void()>& between);

 private:
  struct Crew;
  Crew* crew(int threads);

  std::atomic<bool> busy_{false};  // not a mutex: a task that calls run() again must see it taken
  std::unique_ptr<Crew> crew_;
};

}  // namespace fastsae::cpu
