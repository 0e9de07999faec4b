// The decoder on clusters of blocks; compute capability 9.0 and up.
#include "decoder_cluster.h"

#include "launch.h"
#include "launcher.h"

namespace clonewave {
namespace {

template <class E>
__global__ void __launch_bounds__(kThreads, 1)
decoder_cluster_kernel(const __grid_constant__ DecoderParams params) {
  decoder_cluster<DecoderBlock<E, true>>(params);
}

}  // namespace

const char* decoder_launch_cluster(bool float32, const DecoderParams& params, void* stream) {
  const LaunchShape shape{(params.count + kColumns - 1) / kColumns, params.blocks, kThreads,
                          static_cast<size_t>(params.shared_bytes),
                          static_cast<cudaStream_t>(stream)};
  return float32 ? launch(decoder_cluster_kernel<Float32>, shape, params)
                 : launch(decoder_cluster_kernel<Bfloat16>, shape, params);
}

}  // namespace clonewave
