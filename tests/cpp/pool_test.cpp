// The pool of threads: each task once, whoever calls, whatever is thrown, in a forked child too.
#include "cpu/pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "backend/process.h"
#include "core/error.h"
#include "cpu/float_mode.h"
#include "testing.h"

namespace {

using namespace fastsae;
using cpu::Pool;

struct Thrown : std::runtime_error {
  Thrown() : std::runtime_error("thrown") {}
};

template <class Body>
bool throws(const Body& body) {
  try {
    body();
  } catch (const Thrown&) {
    return true;
  }
  return false;
}

const auto nothing = [] {};

bool runs_each_once(Pool& pool, std::int64_t count) {
  std::vector<int> runs(static_cast<std::size_t>(count));
  pool.run(count, [&](std::int64_t i) { ++runs[static_cast<std::size_t>(i)]; }, nothing);
  return runs == std::vector<int>(static_cast<std::size_t>(count), 1);
}

void each_task_runs_once() {
  Pool pool;
  for (const int threads : {1, 2, 4, 8, 3}) {
    set_num_threads(threads);
    for (const std::int64_t count : {0, 1, 2, 7, 100})
      check(runs_each_once(pool, count), text(count, " tasks on ", threads, " threads"));
  }
  set_num_threads(4);
  for (const int limit : {1, 2, 0}) {
    limit_threads_here(limit);
    check(runs_each_once(pool, 9), text("at most ", limit, " threads"));
  }
}

// Rounds that follow each other at once, while the crew spins, and some that it sleeps before. Each reads what other
// threads wrote in the one before.
void rounds_see_each_other() {
  constexpr std::int64_t kCount = 64;
  Pool pool;
  std::vector<std::int64_t> values(kCount), next(kCount);
  for (std::int64_t round = 0; round < 600; ++round) {
    if (round % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    pool.run(
        kCount,
        [&](std::int64_t i) {
          next[static_cast<std::size_t>(i)] = values[static_cast<std::size_t>((i + 17) % kCount)] + 1;
        },
        nothing);
    values.swap(next);
  }
  check(values == std::vector<std::int64_t>(kCount, 600), "each round sees what the one before wrote");
}

// What a task refers to may go once run() has thrown.
void exceptions_stop_everything() {
  Pool pool;
  for (std::int64_t bad = 0; bad < 32; ++bad) {
    const auto inside = std::make_unique<std::atomic<int>>(0);
    const auto task = [&](std::int64_t i) {
      ++*inside;
      if (i % 16 == bad % 16 || (bad >= 16 && i % 3 == 0)) {
        --*inside;
        throw Thrown();
      }
      --*inside;
    };
    check(throws([&] { pool.run(16, task, nothing); }), "the pool rethrows what a task throws");
    check(*inside == 0, "no task runs on once the pool has thrown");
    check(runs_each_once(pool, 16), "the pool works after a task has thrown");
  }
  check(throws([&] { pool.run(16, [](std::int64_t) {}, [] { throw Thrown(); }); }),
        "the pool rethrows what the caller's poll throws");
  check(runs_each_once(pool, 16), "the pool works after a poll has thrown");
}

void callers_share_a_pool() {
  Pool pool;
  std::atomic<int> sum{0};
  const auto add = [&](std::int64_t) { ++sum; };
  pool.run(8, [&](std::int64_t) { pool.run(8, add, nothing); }, nothing);
  check(sum == 64, "a task may use the pool it runs on");

  std::atomic<int> good{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&, caller] {
      limit_threads_here(caller % 3);
      for (int k = 0; k < 30; ++k) {
        good += runs_each_once(pool, 8);
        good += throws([&] {
          pool.run(
              8,
              [](std::int64_t i) {
                if (i == 5) throw Thrown();
              },
              nothing);
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  check(good == 8 * 30 * 2, "a caller of a busy pool works alone, and gets its own exceptions");
}

void threads_have_the_callers_float_mode() {
  Pool pool;
  const double tiny = 1e-310;
  std::vector<double> halves(16);
  const auto halve = [&](std::int64_t i) {
    const volatile double value = tiny;  // not a constant to the compiler
    halves[static_cast<std::size_t>(i)] = value * 0.5;
  };
  for (int i = 0; i < 3; ++i) {
    pool.run(16, halve, nothing);
    check(halves == std::vector<double>(16, 0.5e-310), "denormals are kept");
    if (cpu::kFlushDenormals == 0) continue;
    const cpu::FlushDenormals flush;
    pool.run(16, halve, nothing);
    for (double& half : halves) half = half == 0 ? 1 : 0;  // a comparison flushes too
    check(halves == std::vector<double>(16, 1), "denormals are flushed where the caller does it");
  }
}

// Whether body() returns true in a child of this process.
template <class Body>
bool holds_in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(120);  // a child that hangs is a failure
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void forked_children_work() {
  set_num_threads(4);
  auto pool = std::make_unique<Pool>();
  check(runs_each_once(*pool, 16), "a parent before it forks");
  const bool good = holds_in_child([&] {
    bool works = runs_each_once(*pool, 16) && runs_each_once(*pool, 3);
    works = works && holds_in_child([&] { return runs_each_once(*pool, 16); });
    return works && runs_each_once(*pool, 16);
  });
  check(good, "a child starts a crew of its own, and so does its child");
  check(holds_in_child([&] {
          pool.reset();
          return true;
        }),
        "a child lets go of a pool whose threads it does not have");
  check(runs_each_once(*pool, 16), "the parent goes on");
  std::atomic<int> good_inside{0};
  pool->run(
      4,
      [&](std::int64_t i) {
        if (i == 3) good_inside += holds_in_child([&] { return runs_each_once(*pool, 16); });
      },
      nothing);
  check(good_inside == 1, "a child that was forked by a task works");
}

}  // namespace

int main() {
  forked_children_work();
  each_task_runs_once();
  rounds_see_each_other();
  exceptions_stop_everything();
  callers_share_a_pool();
  threads_have_the_callers_float_mode();
  return verdict("pool");
}
