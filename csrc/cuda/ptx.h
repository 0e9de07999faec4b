// Every hardware operation of the CUDA kernels, each as one inline function: PTX for nvcc, C++ for
// the host emulation (tests/emulation), which runs the kernels' source on a CPU. Kernels contain no
// inline assembly and name no CUDA built-in.
//
// Shared addresses are 32-bit numbers of the shared::cluster window, as `mapa` gives them.
#pragma once

#include <cmath>
#include <cstdint>

#include "sizes.h"

namespace clonewave {

struct alignas(16) Word4 {
  uint32_t x, y, z, w;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

}  // namespace clonewave

#ifdef __CUDACC__

#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_4 _Pragma("unroll 4")

namespace clonewave {

extern __shared__ __align__(16) unsigned char dynamic_shared[];

DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DEVICE unsigned char* shared_memory() { return dynamic_shared; }
DEVICE void sync_threads() { __syncthreads(); }

DEVICE uint32_t special_cluster_id() {
  uint32_t value;
  asm volatile("mov.u32 %0, %%clusterid.x;" : "=r"(value));
  return value;
}
// Which group of columns this block or cluster works on; its rank in the cluster.
template <bool kCluster>
DEVICE int group_index() {
  if constexpr (kCluster) return static_cast<int>(special_cluster_id());
  return static_cast<int>(blockIdx.x);
}
template <bool kCluster>
DEVICE int block_rank() {
  if constexpr (!kCluster) return 0;
  uint32_t value;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(value));
  return static_cast<int>(value);
}

// ---- cluster: distributed shared memory, mbarriers ----

DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
// The same place in the shared memory of block `rank` of this cluster.
DEVICE uint32_t remote_address(const void* pointer, int rank) {
  uint32_t found;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(found) : "r"(shared_address(pointer)), "r"(rank));
  return found;
}
DEVICE void cluster_sync() {
  // Not the aligned form: warps may come from a branch.
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
DEVICE void mbarrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :: "r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the cluster; a cluster_sync follows.
DEVICE void mbarrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// One arrival that also announces `bytes` of data for the current phase.
DEVICE void mbarrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Blocks until phase `phase` (0, 1, 2 ...) is over, and sees the data that came with it.
DEVICE void mbarrier_wait(uint64_t* barrier, int phase) {
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done) : "r"(shared_address(barrier)), "r"(phase & 1) : "memory");
  }
}
// Stores into another block's shared memory; the bytes count towards that block's barrier.
DEVICE void send(uint32_t address, Float4 v, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];"
      :: "r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(barrier) : "memory");
}
DEVICE void send(uint32_t address, float a, float b, uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1,%2}, [%3];"
      :: "r"(address), "f"(a), "f"(b), "r"(barrier) : "memory");
}
DEVICE void send(uint32_t address, float a, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [%0], %1, [%2];"
               :: "r"(address), "f"(a), "r"(barrier) : "memory");
}

// ---- global to shared memory, 16 bytes at a time ----

DEVICE void copy_async(void* to_shared, const void* from_global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :: "r"(shared_address(to_shared)), "l"(from_global) : "memory");
}
// Waits for every copy_async of this thread.
DEVICE void copy_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

template <class T>
DEVICE T load_global(const T* pointer) { return __ldg(pointer); }  // constant while the kernel runs
DEVICE Word4 load_global(const Word4* pointer) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(pointer));
  return {v.x, v.y, v.z, v.w};
}
DEVICE Float4 load_global(const Float4* pointer) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(pointer));
  return {v.x, v.y, v.z, v.w};
}

// ---- arithmetic ----

// c += a b, m16n8k16: bfloat16 inputs, float32 accumulation.
DEVICE void mma(float (&c)[4], const Word4& a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
// Two floats rounded to bfloat16 (to nearest even), `low` in the low half.
DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
DEVICE float tanh_approximate(float x) {  // relative error below 2^-10.9
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
DEVICE float shuffle_up(float value, int by) { return __shfl_up_sync(~0u, value, by); }
DEVICE float shuffle_from(float value, int lane) { return __shfl_sync(~0u, value, lane); }
DEVICE float cos_pi(float x) { return cospif(x); }
DEVICE float sin_pi(float x) { return sinpif(x); }
DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }

}  // namespace clonewave

#else  // the host emulation

#include "emulator.h"

#define DEVICE inline
#define UNROLL
#define UNROLL_BY_4

namespace clonewave {

inline int thread_index() { return emulator::current().thread; }
inline unsigned char* shared_memory() { return emulator::current().block->shared.data(); }
inline void sync_threads() { emulator::sync_threads(); }
template <bool kCluster>
inline int group_index() { return emulator::current().block->group; }
template <bool kCluster>
inline int block_rank() { return emulator::current().block->rank; }

inline uint32_t remote_address(const void* pointer, int rank) {
  return emulator::address_of(pointer, rank);
}
inline void cluster_sync() { emulator::cluster_sync(); }
inline void mbarrier_init(uint64_t* barrier, int n) { emulator::mbarrier_init(barrier, n); }
inline void mbarrier_init_fence() {}
inline void mbarrier_expect(uint64_t* barrier, int n) { emulator::mbarrier_expect(barrier, n); }
inline void mbarrier_wait(uint64_t* barrier, int phase) { emulator::mbarrier_wait(barrier, phase); }
inline void send(uint32_t address, Float4 v, uint32_t barrier) {
  emulator::send(address, &v, sizeof v, barrier);
}
inline void send(uint32_t address, float a, float b, uint32_t barrier) {
  const float both[2] = {a, b};
  emulator::send(address, both, sizeof both, barrier);
}
inline void send(uint32_t address, float a, uint32_t barrier) {
  emulator::send(address, &a, sizeof a, barrier);
}
inline void copy_async(void* to, const void* from) { emulator::copy_async(to, from); }
inline void copy_wait() { emulator::copy_wait(); }
template <class T>
inline T load_global(const T* pointer) {
  emulator::check_aligned(pointer, sizeof(T));
  return *pointer;
}
inline void mma(float (&c)[4], const Word4& a, uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a.x, a.y, a.z, a.w, b0, b1};
  emulator::mma(c, words);
}
inline uint32_t pack_bfloat16(float low, float high) {
  return emulator::bfloat16(low) | static_cast<uint32_t>(emulator::bfloat16(high)) << 16;
}
inline float tanh_approximate(float x) { return std::tanh(x); }
inline float shuffle_xor(float value, int mask) {
  return emulator::shuffle(value, thread_index() % kWarp ^ mask);
}
inline float shuffle_up(float value, int by) {
  const int lane = thread_index() % kWarp;
  return emulator::shuffle(value, lane < by ? lane : lane - by);
}
inline float shuffle_from(float value, int lane) { return emulator::shuffle(value, lane); }
inline float cos_pi(float x) { return static_cast<float>(std::cos(3.14159265358979323846 * x)); }
inline float sin_pi(float x) { return static_cast<float>(std::sin(3.14159265358979323846 * x)); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}

}  // namespace clonewave

#endif
