// Thread-block clusters: one-way hop by st.async, barrier, how many are resident. Needs sm_90.
#include "micro.h"

constexpr int kRounds = 2048;
constexpr int kSharedBytes = 220 * 1024;

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline uint32_t mapped(uint32_t address, uint32_t rank) {
  uint32_t remote;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
  return remote;
}

__device__ inline void barrier_all() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

__device__ inline void wait_phase(uint32_t barrier, uint32_t parity) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  }
}

// CTA 0 and CTA `peer` send one word to and fro; data and arrival travel together.
__global__ void hop(unsigned long long* cycles, uint32_t peer) {
  __shared__ alignas(8) uint64_t barrier;
  __shared__ alignas(8) uint32_t word;
  uint32_t rank = cluster_rank(), mine = shared_address(&barrier);
  if (threadIdx.x == 0) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(
        mine));
  }
  barrier_all();
  if (threadIdx.x == 0 && (rank == 0 || rank == peer)) {
    uint32_t other = rank == 0 ? peer : 0;
    uint32_t to = mapped(shared_address(&word), other), arrival = mapped(mine, other);
    unsigned long long begin = clock64();
    for (uint32_t i = 0; i < kRounds; ++i) {
      asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], 4;" ::"r"(mine)
                   : "memory");
      if (rank != 0) wait_phase(mine, i & 1);
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];" ::"r"(to),
          "r"(i), "r"(arrival)
          : "memory");
      if (rank == 0) wait_phase(mine, i & 1);
    }
    if (rank == 0) *cycles = clock64() - begin;
  }
  barrier_all();
}

__global__ void strict_barrier(unsigned long long* cycles) {
  barrier_all();
  unsigned long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) barrier_all();
  if (threadIdx.x == 0 && cluster_rank() == 0) *cycles = clock64() - begin;
}

__global__ void relaxed_barrier(unsigned long long* cycles) {
  barrier_all();
  unsigned long long begin = clock64();
  for (int i = 0; i < kRounds; ++i) {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  }
  if (threadIdx.x == 0 && cluster_rank() == 0) *cycles = clock64() - begin;
}

__global__ void resident() {
  extern __shared__ unsigned char memory[];
  memory[threadIdx.x] = 0;
}

struct Launch {
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  Launch(unsigned size, unsigned threads, size_t shared) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {size, 1, 1};
    config.gridDim = dim3(size);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.attrs = &attribute;
    config.numAttrs = 1;
  }
};

int main() {
  char name[64];
  for (unsigned size : {2u, 4u, 8u}) {
    for (unsigned peer = 1; peer < size; ++peer) {
      Launch launch(size, 32, 0);
      double cycles = cycles_of(
          [&](auto* c) { CHECK(cudaLaunchKernelEx(&launch.config, hop, c, uint32_t(peer))); });
      snprintf(name, sizeof name, "st_async_hop_cluster%u_0_to_%u", size, peer);
      report(name, cycles / kRounds / 2, "cycles");
    }
    Launch launch(size, 256, 0);
    double strict = cycles_of(
        [&](auto* c) { CHECK(cudaLaunchKernelEx(&launch.config, strict_barrier, c)); });
    double relaxed = cycles_of(
        [&](auto* c) { CHECK(cudaLaunchKernelEx(&launch.config, relaxed_barrier, c)); });
    snprintf(name, sizeof name, "cluster_barrier_strict_%u", size);
    report(name, strict / kRounds, "cycles");
    snprintf(name, sizeof name, "cluster_barrier_relaxed_%u", size);
    report(name, relaxed / kRounds, "cycles");
  }
  CHECK(cudaFuncSetAttribute(resident, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  for (unsigned size : {1u, 2u, 4u, 8u}) {
    Launch launch(size, 256, kSharedBytes);
    int clusters = 0;
    CHECK(cudaOccupancyMaxActiveClusters(&clusters, resident, &launch.config));
    snprintf(name, sizeof name, "max_active_clusters_%u_at_220KB", size);
    report(name, clusters, "clusters");
  }
  return 0;
}
