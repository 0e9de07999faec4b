// Thread counts and group sizes that host and device share.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

namespace clonewave {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int kThreads = kWarp * kWarps;  // of every kernel
constexpr int kColumns = 8;               // streams of a group: the columns of one MMA

}  // namespace clonewave
