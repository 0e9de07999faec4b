// What the microbenchmarks share: checked calls, one JSON line a figure, and the PTX they measure.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#define CHECK(call)                                                                     \
  do {                                                                                  \
    cudaError_t status = (call);                                                        \
    if (status != cudaSuccess) {                                                        \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(status));   \
      exit(1);                                                                          \
    }                                                                                   \
  } while (0)

inline void report(const char* name, double value, const char* unit) {
  printf("{\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\"}\n", name, value, unit);
}

inline int multiprocessors() {
  int count = 0;
  CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0));
  return count;
}

// A kernel that fills one counter, run three times; the fastest counts.
template <typename Launch>
double cycles_of(Launch launch) {
  unsigned long long* counter = nullptr;
  CHECK(cudaMalloc(&counter, sizeof(*counter)));
  double best = 1e30;
  for (int i = 0; i < 3; ++i) {
    CHECK(cudaMemset(counter, 0, sizeof(*counter)));
    launch(counter);
    CHECK(cudaGetLastError());
    unsigned long long cycles = 0;
    CHECK(cudaMemcpy(&cycles, counter, sizeof(cycles), cudaMemcpyDeviceToHost));
    if (double(cycles) < best) best = double(cycles);
  }
  CHECK(cudaFree(counter));
  return best;
}

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
