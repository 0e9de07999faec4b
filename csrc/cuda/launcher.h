// Launching, shared by the .cu files: every return code of the runtime is looked at.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace clonewave {

inline const char* words(cudaError_t code) {
  if (code == cudaSuccess) return nullptr;
  cudaGetLastError();  // told here; the next call must not report it again
  return cudaGetErrorString(code);
}

struct LaunchShape {
  int groups, blocks, threads;
  size_t shared_bytes;
  cudaStream_t stream;
};

// A grid of `groups` clusters of `blocks` blocks; blocks = 1 is a plain grid.
class LaunchConfig {
 public:
  explicit LaunchConfig(const LaunchShape& shape) {
    config_.gridDim = dim3(static_cast<unsigned>(shape.groups * shape.blocks));
    config_.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config_.dynamicSmemBytes = shape.shared_bytes;
    config_.stream = shape.stream;
    cluster_.id = cudaLaunchAttributeClusterDimension;
    cluster_.val.clusterDim = {static_cast<unsigned>(shape.blocks), 1, 1};
    config_.attrs = &cluster_;
    config_.numAttrs = shape.blocks > 1 ? 1 : 0;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchAttribute cluster_{};
  cudaLaunchConfig_t config_{};
};

template <class Kernel>
cudaError_t allow_shared(Kernel* kernel, size_t bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bytes));
}

template <class Kernel, class Params>
const char* launch(Kernel* kernel, const LaunchShape& shape, const Params& params) {
  if (!shape.groups) return nullptr;
  if (const char* error = words(allow_shared(kernel, shape.shared_bytes))) return error;
  const LaunchConfig config(shape);
  return words(cudaLaunchKernelEx(config.get(), kernel, params));
}

}  // namespace clonewave
