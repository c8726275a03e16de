// A team whose members are threads, with real barriers: what they do to each other in one phase is a race here as on a
// device, where the serial team would hide it. Built with the thread sanitizer, every such pair is reported.
#pragma once

#include <barrier>
#include <deque>
#include <thread>
#include <vector>

#include "team.h"

namespace fastsae::cuda {

// What the members of one block share.
template <class State>
struct ThreadBlock {
  explicit ThreadBlock(int size) : states(static_cast<std::size_t>(size)), all(size) {
    for (int first = 0; first < size; first += 32) warps.emplace_back(size - first < 32 ? size - first : 32);
  }
  std::vector<State> states;
  std::barrier<> all;
  std::deque<std::barrier<> > warps;
};

// One member's view of it: each thread runs the whole algorithm, what is outside of phases too.
template <class State>
class ThreadTeam {
 public:
  ThreadTeam(ThreadBlock<State>& block, int member) : block_(block), member_(member) {}
  template <class Run>
  void phase(const Run& run) {
    each(run);
    block_.all.arrive_and_wait();
  }
  template <class Run>
  void each(const Run& run) {
    run(member_, block_.states[static_cast<std::size_t>(member_)]);
  }
  template <class Run>
  void warp(const Run& run) {
    std::barrier<>& lanes = block_.warps[static_cast<std::size_t>(member_ / 32)];
    lanes.arrive_and_wait();
    if (member_ % 32 == 0) run(&block_.states[static_cast<std::size_t>(member_)]);
    lanes.arrive_and_wait();
  }
  // Nobody but this member sees its copies before the barrier.
  template <int bytes>
  void copy(void* to, const void* from, int valid) {
    copies_.start(to, from, bytes, valid);
  }
  void commit() { copies_.commit(); }
  template <int later>
  void arrive() {
    copies_.finish_all_but(later);
    block_.all.arrive_and_wait();
  }

 private:
  ThreadBlock<State>& block_;
  const int member_;
  LateCopies copies_;
};

// run(team) by every member of a block.
template <class State, class Run>
void play_by_threads(int size, const Run& run) {
  ThreadBlock<State> block(size);
  std::vector<std::thread> members;
  for (int member = 0; member < size; ++member) {
    members.emplace_back([&block, &run, member] {
      ThreadTeam<State> team(block, member);
      run(team);
    });
  }
  for (std::thread& member : members) member.join();
}

}  // namespace fastsae::cuda
