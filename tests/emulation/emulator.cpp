#include "emulator.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;
constexpr uint32_t kRankShift = 24;  // an address is an offset and, above, a rank

struct Fiber {
  Thread self;
  ucontext_t context;
  jmp_buf at;
  bool started = false;
  std::string waits;       // for what, if blocked
  int copies = 0;          // asynchronous copies under way
  bool unawaited = false;  // copies begun since the last wait for them
  std::unique_ptr<char[]> stack;
};

// Threads that meet: a block, a cluster or a warp.
struct Meeting {
  int expected = 0;
  std::string what;
  std::vector<Fiber*> inside;
  std::vector<void*> brought;
};

struct Mbarrier {
  int arrivals, pending;
  int64_t bytes = 0;
  int phase = 0;  // phases completed
  std::vector<Fiber*> waiting;
};

struct Delivery {
  std::function<void()> arrive;
};

struct World {
  std::vector<Block> blocks;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Fiber*> ready;
  std::vector<Meeting> warps, block_meetings;
  Meeting cluster_meeting;
  std::map<uint32_t, Mbarrier> barriers;
  std::vector<Delivery> underway;
  std::mt19937_64 random;
  const std::function<void()>* kernel = nullptr;
  Fiber* running = nullptr;
  std::string fault;
  ucontext_t main_context;
  jmp_buf main_at;
};

World* world = nullptr;

std::string name(const Fiber& f) {
  return "block " + std::to_string(f.self.block->rank) + " thread " + std::to_string(f.self.thread);
}

[[noreturn]] void fault(const std::string& what) {
  throw Fault((world->running ? name(*world->running) + ": " : "") + what);
}

// Back to the scheduler. Jumps cost no system call; contexts only start a fiber.
void leave() {
  Fiber* self = world->running;
  if (!_setjmp(self->at)) _longjmp(world->main_at, 1);
}

void block_on(const std::string& what) {
  world->running->waits = what;
  leave();
}

void wake(Fiber* fiber) {
  fiber->waits.clear();
  world->ready.push_back(fiber);
}

void body() {
  Fiber* self = world->running;
  try {
    (*world->kernel)();
    if (self->unawaited) fault("returned before its asynchronous copies were waited for");
    --self->self.block->running;
  } catch (const std::exception& error) {
    world->fault = error.what();
  }
  self->waits = "end";
  _longjmp(world->main_at, 1);
}

void resume(Fiber* fiber) {
  world->running = fiber;
  if (!_setjmp(world->main_at)) {
    if (fiber->started) _longjmp(fiber->at, 1);
    fiber->started = true;
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, body, 0);
    setcontext(&fiber->context);
  }
  world->running = nullptr;
}

template <class List>
auto take_random(List& list) {
  const size_t i = world->random() % list.size();
  std::swap(list[i], list.back());
  auto taken = std::move(list.back());
  list.pop_back();
  return taken;
}

// The last to come runs `finish` over what all brought, in order of thread; then all go on.
template <class Finish>
void meet(Meeting& meeting, int slot, const std::string& what, void* bring, Finish finish) {
  if (meeting.inside.empty()) {
    meeting.what = what;
    meeting.brought.assign(static_cast<size_t>(meeting.expected), nullptr);
  }
  if (meeting.what != what) fault(what + " while others are at " + meeting.what);
  meeting.brought[static_cast<size_t>(slot)] = bring;
  if (static_cast<int>(meeting.inside.size()) + 1 < meeting.expected) {
    meeting.inside.push_back(world->running);
    block_on(what);
    return;
  }
  finish(meeting.brought);
  for (Fiber* other : meeting.inside) wake(other);
  meeting.inside.clear();
  world->ready.push_back(world->running);  // whoever came last does not go on first
  leave();
}

Meeting& my_warp() {
  const Thread& self = world->running->self;
  const size_t per_block = world->warps.size() / world->blocks.size();
  return world->warps[self.block->rank * per_block + self.thread / kWarp];
}

unsigned char* place(uint32_t address, size_t bytes, const char* what) {
  const uint32_t rank = address >> kRankShift, offset = address & ((1u << kRankShift) - 1);
  if (rank >= world->blocks.size()) fault(std::string(what) + ": no such block");
  Block& block = world->blocks[rank];
  if (offset % bytes) fault(std::string(what) + ": misaligned shared address");
  if (offset + bytes > block.shared.size() - kGuard) fault(std::string(what) + ": outside");
  if (!block.running) fault(std::string(what) + ": the block has ended");
  return block.shared.data() + offset;
}

Mbarrier& barrier_at(uint32_t address) {
  const auto found = world->barriers.find(address);
  if (found == world->barriers.end()) fault("an mbarrier that was not initialised");
  return found->second;
}

void settle(Mbarrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  for (Fiber* fiber : barrier.waiting) wake(fiber);
  barrier.waiting.clear();
}

void deliver_one() {
  Delivery delivery = take_random(world->underway);
  delivery.arrive();
}

void report_deadlock() {
  std::map<std::string, int> waits;
  for (const auto& fiber : world->fibers) {
    if (fiber->waits != "end") {
      ++waits["block " + std::to_string(fiber->self.block->rank) + " at " + fiber->waits];
    }
  }
  std::string text = "deadlock:";
  for (const auto& [what, count] : waits) text += " " + std::to_string(count) + " of " + what + ";";
  throw Fault(text);
}

void schedule() {
  for (;;) {
    const bool some = !world->ready.empty();
    if (!world->underway.empty() && (!some || world->random() % 8 == 0)) {
      deliver_one();
    } else if (some) {
      resume(take_random(world->ready));
      if (!world->fault.empty()) throw Fault(world->fault);
    } else {
      break;
    }
  }
  for (const auto& fiber : world->fibers) {
    if (fiber->waits != "end") report_deadlock();
  }
  for (const Block& block : world->blocks) {
    for (int i = 0; i < kGuard; ++i) {
      if (block.shared[block.shared.size() - 1 - i] != 0xFF) fault("write past shared memory");
    }
  }
}

}  // namespace

Thread& current() { return world->running->self; }

void run(int groups, int blocks, int threads, size_t shared_bytes, uint64_t seed,
         const std::function<void()>& kernel) {
  World here;
  here.kernel = &kernel;
  here.random.seed(seed);
  here.blocks.resize(blocks);
  for (int i = 0; i < blocks * threads; ++i) {
    here.fibers.push_back(std::make_unique<Fiber>());
    here.fibers.back()->stack.reset(new char[kStack]);
  }
  world = &here;
  for (int group = 0; group < groups; ++group) {
    here.barriers.clear();
    here.warps.assign(blocks * threads / kWarp, Meeting{kWarp, {}, {}, {}});
    here.block_meetings.assign(blocks, Meeting{threads, {}, {}, {}});
    here.cluster_meeting = Meeting{blocks * threads, {}, {}, {}};
    for (int rank = 0; rank < blocks; ++rank) {
      here.blocks[rank] = {group, rank, std::vector<unsigned char>(shared_bytes + kGuard, 0xFF),
                           threads};
    }
    for (int i = 0; i < blocks * threads; ++i) {
      Fiber& fiber = *here.fibers[i];
      fiber.self = {i % threads, &here.blocks[i / threads]};
      fiber.started = false;
      wake(&fiber);
    }
    schedule();
  }
  world = nullptr;
}

void sync_threads() {
  const Thread& self = current();
  meet(world->block_meetings[self.block->rank], self.thread, "sync_threads", nullptr,
       [](auto&) {});
}

void cluster_sync() {
  const Thread& self = current();
  const int slot = self.block->rank * world->block_meetings[0].expected + self.thread;
  meet(world->cluster_meeting, slot, "cluster_sync", nullptr, [](auto&) {});
}

uint32_t address_of(const void* pointer, int rank) {
  Block& block = *current().block;
  const auto offset = static_cast<const unsigned char*>(pointer) - block.shared.data();
  if (offset < 0 || offset >= static_cast<int64_t>(block.shared.size())) fault("not shared memory");
  return static_cast<uint32_t>(offset) | static_cast<uint32_t>(rank) << kRankShift;
}

void mbarrier_init(const void* barrier, int arrivals) {
  world->barriers[address_of(barrier, current().block->rank)] = {arrivals, arrivals, 0, 0, {}};
}

void mbarrier_expect(const void* barrier, int bytes) {
  Mbarrier& b = barrier_at(address_of(barrier, current().block->rank));
  if (!b.pending) fault("an mbarrier phase announced twice");
  --b.pending;
  b.bytes += bytes;
  settle(b);
}

void mbarrier_wait(const void* barrier, int phase) {
  Mbarrier& b = barrier_at(address_of(barrier, current().block->rank));
  if (b.phase > phase + 1) fault("waits for an mbarrier phase that is more than one behind");
  if (b.phase < phase) fault("waits for an mbarrier phase while the one before is not over");
  if (b.phase == phase) {
    b.waiting.push_back(world->running);
    block_on("mbarrier phase " + std::to_string(phase));
  }
}

void send(uint32_t address, const void* data, int bytes, uint32_t barrier) {
  if (address >> kRankShift != barrier >> kRankShift) fault("send: barrier of another block");
  place(address, bytes, "send");
  std::vector<unsigned char> copy(bytes);
  std::memcpy(copy.data(), data, bytes);
  world->underway.push_back({[=] {
    std::memcpy(place(address, copy.size(), "send"), copy.data(), copy.size());
    Mbarrier& b = barrier_at(barrier);
    b.bytes -= static_cast<int64_t>(copy.size());
    if (b.bytes < 0) fault("send: more bytes than the barrier was told to expect");
    settle(b);
  }});
}

void copy_async(void* to, const void* from) {
  check_aligned(from, 16);
  const uint32_t address = address_of(to, current().block->rank);
  place(address, 16, "copy_async");
  Fiber* self = world->running;
  ++self->copies;
  self->unawaited = true;
  world->underway.push_back({[=] {
    std::memcpy(place(address, 16, "copy_async"), from, 16);
    if (!--self->copies && self->waits == "copy_wait") wake(self);
  }});
}

void copy_wait() {
  if (world->running->copies) block_on("copy_wait");
  world->running->unawaited = false;
}

uint16_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if (std::isnan(value)) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

void check_aligned(const void* pointer, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(pointer) % std::min<size_t>(bytes, 16)) fault("misaligned load");
}

namespace {

float half_of(uint32_t word, int high) {
  const uint32_t bits = high ? word & 0xFFFF0000u : word << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

struct MmaLane {
  float* c;
  const uint32_t* words;
};

// Fragment layouts of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16").
void mma_warp(std::vector<void*>& lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const uint32_t* w = static_cast<MmaLane*>(lanes[lane])->words;
    const int g = lane / 4, t = lane % 4;
    for (int h = 0; h < 2; ++h) {
      a[g][2 * t + h] = half_of(w[0], h);
      a[g + 8][2 * t + h] = half_of(w[1], h);
      a[g][2 * t + 8 + h] = half_of(w[2], h);
      a[g + 8][2 * t + 8 + h] = half_of(w[3], h);
      b[2 * t + h][g] = half_of(w[4], h);
      b[2 * t + 8 + h][g] = half_of(w[5], h);
    }
  }
  float sum[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    float* c = static_cast<MmaLane*>(lanes[lane])->c;
    for (int i = 0; i < 4; ++i) c[i] += sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

}  // namespace

void mma(float (&c)[4], const uint32_t (&words)[6]) {
  MmaLane mine{c, words};
  meet(my_warp(), current().thread % kWarp, "mma", &mine, mma_warp);
}

float shuffle(float value, int from_lane) {
  struct Lane {
    float in, out;
    int from;
  } mine{value, value, from_lane};
  meet(my_warp(), current().thread % kWarp, "shuffle", &mine, [](std::vector<void*>& lanes) {
    for (void* lane : lanes) {
      Lane& to = *static_cast<Lane*>(lane);
      to.out = static_cast<Lane*>(lanes[to.from])->in;
    }
  });
  return mine.out;
}

}  // namespace emulator
