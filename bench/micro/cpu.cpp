// What one core can do: clock, bytes a second from each cache, instruction rates, and how long a
// cache line takes to another core and back.
//
//   g++ -O2 -std=c++17 -pthread -mavx512f -mavx512bw -mavx512vnni -mavx512bf16 -o cpu cpu.cpp && ./cpu
#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <thread>

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

template <class F>
double best_of(int rounds, F f) {  // seconds of the fastest round
  double best = 1e9;
  for (int i = 0; i < rounds; ++i) {
    const auto begin = Clock::now();
    f();
    best = std::min(best, seconds_since(begin));
  }
  return best;
}

double gigahertz() {  // a chain of additions takes a cycle each
  constexpr int64_t kSteps = 4'000'000;
  return kSteps * 1e-9 / best_of(40, [] {
    int64_t v = 1;
    for (int64_t i = 0; i < kSteps / 8; ++i) {
      asm volatile("add $1, %0\nadd $1, %0\nadd $1, %0\nadd $1, %0\n"
                   "add $1, %0\nadd $1, %0\nadd $1, %0\nadd $1, %0" : "+r"(v));
    }
  });
}

#define RATE(name, text)                                                                 \
  do {                                                                                   \
    const double s = best_of(40, [] {                                                    \
      for (int i = 0; i < 100'000; ++i) {                                                \
        asm volatile(text(0) text(1) text(2) text(3) text(4) text(5) text(6) text(7)     \
                     text(8) text(9) ::: "zmm0", "zmm1", "zmm2", "zmm3", "zmm4", "zmm5", \
                     "zmm6", "zmm7", "zmm8", "zmm9");                                    \
      }                                                                                  \
    });                                                                                  \
    printf("%-22s %5.2f a cycle\n", name, 1e6 / (s * 1e9 * ghz));                        \
  } while (0)

#define FMA(n) "vfmadd231ps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define HALF(n) "vcvtph2ps %%ymm30, %%zmm" #n "\n"
#define HALF_FMA(n) "vcvtph2ps %%ymm30, %%zmm29\nvfmadd231ps %%zmm29, %%zmm31, %%zmm" #n "\n"
#define BYTES(n) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #n "\n"
#define WORDS(n) "vpdpwssd %%zmm30, %%zmm31, %%zmm" #n "\n"
#define WIDEN(n) "vpmovsxbw %%ymm30, %%zmm" #n "\n"
#define BFLOAT(n) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define DIVIDE(n) "vdivps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define SCALE(n) "vscalefps %%zmm30, %%zmm31, %%zmm" #n "\n"
#define RECIPROCAL(n) "vrcp14ps %%zmm30, %%zmm" #n "\n"

void read(const uint8_t* from, size_t bytes) {
  const uint8_t* end = from + bytes;
  asm volatile(
      "1: vmovdqa64 (%0), %%zmm0\nvmovdqa64 64(%0), %%zmm1\nvmovdqa64 128(%0), %%zmm2\n"
      "vmovdqa64 192(%0), %%zmm3\nadd $256, %0\ncmp %1, %0\njb 1b"
      : "+r"(from) : "r"(end) : "zmm0", "zmm1", "zmm2", "zmm3", "memory");
}

void read_rates(double ghz) {
  constexpr size_t kMost = 32 << 20;
  uint8_t* block = static_cast<uint8_t*>(aligned_alloc(1 << 21, kMost));
  for (size_t i = 0; i < kMost; i += 64) block[i] = 1;
  for (size_t kib : {16, 256, 480, 700, 900, 1400, 2000, 2900, 3900, 5800, 11500, 32768}) {
    const size_t bytes = kib << 10;
    const int times = static_cast<int>(std::max<size_t>(1, (4 << 20) / bytes));
    const double s = best_of(60, [&] {
      for (int i = 0; i < times; ++i) read(block, bytes);
    });
    const double rate = bytes * times / s;
    printf("read %6.2f MB          %5.1f bytes a cycle, %4.0f GB/s\n", bytes * 1e-6,
           rate / (ghz * 1e9), rate * 1e-9);
  }
  free(block);
}

struct alignas(128) Line {
  std::atomic<int> value{0};
};

void pin(std::initializer_list<int> cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu : cpus) CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

void there_and_back() {
  constexpr int kTrips = 2'000;
  static Line there, back;
  double best = 1e9;
  for (int round = 0; round < 200; ++round) {
    there.value = back.value = 0;
    std::atomic<bool> up{false};
    std::thread other([&up] {
      pin({1});
      up = true;
      for (int i = 1; i <= kTrips; ++i) {
        while (there.value.load(std::memory_order_acquire) != i) {}
        back.value.store(i, std::memory_order_release);
      }
    });
    pin({0});
    while (!up) {}
    const auto begin = Clock::now();
    for (int i = 1; i <= kTrips; ++i) {
      there.value.store(i, std::memory_order_release);
      while (back.value.load(std::memory_order_acquire) != i) {}
    }
    best = std::min(best, seconds_since(begin));
    other.join();
    pin({0, 1});  // the next thread starts where this one may
  }
  printf("cache line to core 1 and back  %.0f ns\n", 1e9 * best / kTrips);
}

}  // namespace

int main() {
  const double ghz = gigahertz();
  printf("clock                  %5.2f GHz\n", ghz);
  RATE("vfmadd231ps zmm", FMA);
  RATE("vcvtph2ps zmm", HALF);
  RATE("vcvtph2ps + fma", HALF_FMA);
  RATE("vpdpbusd zmm", BYTES);
  RATE("vpdpwssd zmm", WORDS);
  RATE("vpmovsxbw zmm", WIDEN);
  RATE("vdpbf16ps zmm", BFLOAT);
  RATE("vdivps zmm", DIVIDE);
  RATE("vrcp14ps zmm", RECIPROCAL);
  RATE("vscalefps zmm", SCALE);
  read_rates(ghz);
  there_and_back();
}
