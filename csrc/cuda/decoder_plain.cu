// The decoder with one block for eight utterances, weights from L2; compute capability 8.0 and up.
#include "decoder_cluster.h"
#include "launch.h"
#include "launcher.h"

namespace clonewave {
namespace {

template <class E>
__global__ void __launch_bounds__(kThreads, 1)
decoder_plain_kernel(const __grid_constant__ DecoderParams params) {
  decoder_cluster<DecoderBlock<E, false>>(params);
}

}  // namespace

const char* decoder_launch_plain(bool float32, const DecoderParams& params, void* stream) {
  const LaunchShape shape{(params.count + kColumns - 1) / kColumns, 1, kThreads,
                          static_cast<size_t>(params.shared_bytes),
                          static_cast<cudaStream_t>(stream)};
  return float32 ? launch(decoder_plain_kernel<Float32>, shape, params)
                 : launch(decoder_plain_kernel<Bfloat16>, shape, params);
}

int shared_memory_room(const char** error) {
  int device = 0, bytes = -1;
  *error = words(cudaGetDevice(&device));
  if (!*error) {
    *error = words(
        cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  }
  return bytes;
}

}  // namespace clonewave
