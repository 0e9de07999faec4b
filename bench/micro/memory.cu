// L2 to multiprocessor bandwidth, from one and from all; a hop through global memory.
#include "micro.h"

constexpr int kPasses = 64;

// Every CTA reads the same buffer, which stays in L2.
__global__ void read_all(const uint4* data, int words, unsigned long long* cycles, uint32_t* out) {
  uint32_t sum = 0;
  __syncthreads();
  unsigned long long begin = clock64();
  for (int pass = 0; pass < kPasses; ++pass) {
#pragma unroll 4
    for (int i = threadIdx.x; i < words; i += blockDim.x) {
      uint4 v;
      asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                   : "l"(data + i));
      sum += v.x ^ v.y ^ v.z ^ v.w;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(cycles, clock64() - begin);
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

// Two CTAs pass a counter to and fro; both are resident, or this would hang.
__global__ void poll(volatile uint32_t* flags, int rounds, unsigned long long* cycles) {
  int me = blockIdx.x;
  unsigned long long begin = clock64();
  for (uint32_t i = 1; i <= uint32_t(rounds); ++i) {
    if (me == 0) flags[0] = i;
    while (flags[me == 0 ? 32 : 0] != i) {
    }
    if (me == 1) flags[32] = i;
  }
  if (me == 0) *cycles = clock64() - begin;
}

int main() {
  constexpr int kBytes = 1 << 20, kThreads = 512, kRounds = 2048;
  const int all = multiprocessors();
  uint4* data = nullptr;
  uint32_t *out = nullptr, *flags = nullptr;
  CHECK(cudaMalloc(&data, kBytes));
  CHECK(cudaMemset(data, 1, kBytes));
  CHECK(cudaMalloc(&out, size_t(all) * kThreads * sizeof(*out)));
  for (int blocks : {1, all}) {
    double cycles = cycles_of([&](auto* c) {
      read_all<<<blocks, kThreads>>>(data, kBytes / sizeof(uint4), c, out);
    });
    report(blocks == 1 ? "l2_read_one_sm" : "l2_read_all_sms_each", double(kBytes) * kPasses / cycles,
           "bytes/cycle");
  }
  CHECK(cudaMalloc(&flags, 64 * sizeof(*flags)));
  double cycles = cycles_of([&](auto* c) {
    CHECK(cudaMemset(flags, 0, 64 * sizeof(*flags)));
    poll<<<2, 1>>>(flags, kRounds, c);
  });
  report("global_store_to_poll_hop", cycles / kRounds / 2, "cycles");
  return 0;
}
