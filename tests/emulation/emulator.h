// Runs the source of csrc/cuda on a CPU: every GPU thread is a fiber, every block has its shared
// memory, and what the hardware may do in any order is done in an order drawn from a seed.
//
// Checked, each a Fault with what went wrong: deadlock (who waits for what), a barrier reached by
// threads that do different things, over-arrival, an announced phase announced twice, more bytes
// than announced, a wait for a phase that is already two behind, misaligned or foreign addresses,
// writes to a block that has ended, writes past the end of shared memory, copies never waited for.
// Shared memory starts as NaN; asynchronous stores and copies arrive at a later, random time.
// Not modelled: memory ordering, timing, bank conflicts, launch limits, the bits of tanh.approx.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulator {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Block {
  int group, rank;
  std::vector<unsigned char> shared;  // kGuard bytes more than the kernel asked for
  int running;                        // threads that have not returned
};

struct Thread {
  int thread;
  Block* block;
};

constexpr int kGuard = 64;

// The fiber that runs now.
Thread& current();

// Runs `kernel` on a cluster of `blocks` blocks, for each of `groups` clusters in turn.
void run(int groups, int blocks, int threads, size_t shared_bytes, uint64_t seed,
         const std::function<void()>& kernel);

void sync_threads();
void cluster_sync();
uint32_t address_of(const void* pointer, int rank);
void mbarrier_init(const void* barrier, int arrivals);
void mbarrier_expect(const void* barrier, int bytes);
void mbarrier_wait(const void* barrier, int phase);
void send(uint32_t address, const void* data, int bytes, uint32_t barrier);
void copy_async(void* to, const void* from);
void copy_wait();
void mma(float (&c)[4], const uint32_t (&words)[6]);
float shuffle(float value, int from_lane);
uint16_t bfloat16(float value);
void check_aligned(const void* pointer, size_t bytes);

}  // namespace emulator
