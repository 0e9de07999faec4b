// Rings of blocks in clusters; compute capability 9.0 and up.
#include "launcher.h"
#include "variants.h"

namespace clonewave {
namespace {

template <class Form>
__global__ void __launch_bounds__(kThreads, 1)
wavenet_ring_kernel(const __grid_constant__ WaveNetParams params) {
  wavenet_ring<typename Form::Ring>(params);
}

LaunchShape shape_of(const WaveNetParams& p, size_t shared_bytes, void* stream) {
  return {(p.count + kColumns - 1) / kColumns, p.blocks, kThreads, shared_bytes,
          static_cast<cudaStream_t>(stream)};
}

}  // namespace

const char* wavenet_launch_ring(const WaveNetVariant& variant, const WaveNetParams& params,
                                void* stream) {
#define TRY(...)                                                                            \
  if (WaveNetForm<__VA_ARGS__>::kVariant == variant) {                                      \
    using Form = WaveNetForm<__VA_ARGS__>;                                                  \
    return launch(wavenet_ring_kernel<Form>,                                                \
                  shape_of(params, Form::shared_bytes(params), stream), params);            \
  }
  CLONEWAVE_RING_VARIANTS(TRY)
#undef TRY
  return "no ring was compiled for these sizes";
}

int wavenet_resident_rings(const WaveNetVariant& variant, const WaveNetParams& params,
                           const char** error) {
  int found = -1;
#define TRY(...)                                                                            \
  if (WaveNetForm<__VA_ARGS__>::kVariant == variant) {                                      \
    using Form = WaveNetForm<__VA_ARGS__>;                                                  \
    const LaunchConfig config(shape_of(params, Form::shared_bytes(params), nullptr));       \
    *error = words(allow_shared(wavenet_ring_kernel<Form>, Form::shared_bytes(params)));    \
    if (*error) return -1;                                                                  \
    *error = words(                                                                         \
        cudaOccupancyMaxActiveClusters(&found, wavenet_ring_kernel<Form>, config.get()));   \
    return *error ? -1 : found;                                                             \
  }
  CLONEWAVE_RING_VARIANTS(TRY)
#undef TRY
  *error = "no ring was compiled for these sizes";
  return found;
}

}  // namespace clonewave
