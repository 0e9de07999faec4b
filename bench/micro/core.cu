// Latencies inside one multiprocessor, in cycles: barrier, MMA chain, ldmatrix, tanh.approx.
#include "micro.h"

constexpr int kRounds = 4096;

__global__ void barrier(unsigned long long* cycles) {
  __syncthreads();
  unsigned long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) __syncthreads();
  if (threadIdx.x == 0) *cycles = clock64() - begin;
}

__global__ void mma_chain(unsigned long long* cycles, float* out) {
  float c[4] = {0, 0, 0, 0};
  uint32_t a = 0x3c003c00u + threadIdx.x, b = 0x3c003c00u;
  unsigned long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, "
        "{%5,%5}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a), "r"(b));
  }
  if (threadIdx.x == 0) *cycles = clock64() - begin;
  out[threadIdx.x] = c[0] + c[1] + c[2] + c[3];
}

// Each load's address depends on what the one before gave.
__global__ void ldmatrix_chain(unsigned long long* cycles, float* out) {
  __shared__ alignas(16) uint32_t tile[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) tile[i] = 0;
  __syncthreads();
  uint32_t address = shared_address(tile) + (threadIdx.x % 32) * 16, r0 = 0, r1, r2, r3;
  unsigned long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3)
                 : "r"(address + r0));
  }
  if (threadIdx.x == 0) *cycles = clock64() - begin;
  out[threadIdx.x] = float(r0 + r1 + r2 + r3);
}

__global__ void tanh_chain(unsigned long long* cycles, float* out) {
  float x = 0.5f + threadIdx.x;
  unsigned long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) asm volatile("tanh.approx.f32 %0, %0;" : "+f"(x));
  if (threadIdx.x == 0) *cycles = clock64() - begin;
  out[threadIdx.x] = x;
}

int main() {
  float* out = nullptr;
  CHECK(cudaMalloc(&out, 1024 * sizeof(float)));
  auto each = [](double cycles) { return cycles / kRounds; };
  report("bar_sync_256", each(cycles_of([](auto* c) { barrier<<<1, 256>>>(c); })), "cycles");
  report("mma_m16n8k16_dependent", each(cycles_of([&](auto* c) { mma_chain<<<1, 32>>>(c, out); })),
         "cycles");
  report("ldmatrix_x4_dependent",
         each(cycles_of([&](auto* c) { ldmatrix_chain<<<1, 32>>>(c, out); })), "cycles");
  report("tanh_approx_dependent", each(cycles_of([&](auto* c) { tanh_chain<<<1, 32>>>(c, out); })),
         "cycles");
  return 0;
}
