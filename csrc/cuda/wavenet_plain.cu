// One block for eight streams, weights streamed from L2; compute capability 8.0 and up.
#include "launcher.h"
#include "variants.h"

namespace clonewave {
namespace {

template <class Form>
__global__ void __launch_bounds__(kThreads, 1)
wavenet_plain_kernel(const __grid_constant__ WaveNetParams params) {
  wavenet_ring<typename Form::Ring>(params);
}

}  // namespace

const char* wavenet_launch_plain(const WaveNetVariant& variant, const WaveNetParams& params,
                                 void* stream) {
  const int groups = (params.count + kColumns - 1) / kColumns;
#define TRY(...)                                                                            \
  if (WaveNetForm<__VA_ARGS__>::kVariant == variant) {                                      \
    using Form = WaveNetForm<__VA_ARGS__>;                                                  \
    return launch(wavenet_plain_kernel<Form>,                                               \
                  {groups, 1, kThreads, Form::shared_bytes(params),                         \
                   static_cast<cudaStream_t>(stream)},                                      \
                  params);                                                                  \
  }
  CLONEWAVE_PLAIN_VARIANTS(TRY)
#undef TRY
  return "no kernel was compiled for these sizes";
}

}  // namespace clonewave
