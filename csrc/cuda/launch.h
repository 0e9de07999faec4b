// Host side of the CUDA kernels: variants, sizes, launches. Device pointers in, no Python, no torch.
#pragma once

#include <cstddef>

#include "wavenet_params.h"

namespace clonewave {

// Which compiled form of the ring a launch uses.
struct WaveNetVariant {
  int residual_channels, skip_channels;
  int held;      // layers a block holds on chip, 0 = weights are streamed
  bool cluster;  // a ring of blocks in a cluster; needs compute capability 9.0
  bool fold;
  bool float32;

  bool operator==(const WaveNetVariant& o) const {
    return residual_channels == o.residual_channels && skip_channels == o.skip_channels &&
           held == o.held && cluster == o.cluster && fold == o.fold && float32 == o.float32;
  }
};

// X(element, R, S, held, cluster, fold). Rings: the default 4 x 4 and 8 x 2, the same folded, three
// layers a block for 24 layers of one band and nv-wavenet's medium model, the small network.
#define CLONEWAVE_RING_VARIANTS(X)       \
  X(Bfloat16, 64, 128, 4, true, false)   \
  X(Bfloat16, 64, 128, 3, true, false)   \
  X(Bfloat16, 64, 128, 2, true, false)   \
  X(Bfloat16, 64, 128, 2, true, true)    \
  X(Bfloat16, 32, 64, 4, true, false)    \
  X(Float32, 64, 128, 0, true, false)    \
  X(Float32, 32, 64, 0, true, false)
#define CLONEWAVE_PLAIN_VARIANTS(X)      \
  X(Bfloat16, 32, 64, 0, false, false)   \
  X(Bfloat16, 64, 128, 0, false, false)  \
  X(Bfloat16, 64, 256, 0, false, false)  \
  X(Bfloat16, 128, 128, 0, false, false) \
  X(Bfloat16, 128, 256, 0, false, false) \
  X(Float32, 32, 64, 0, false, false)    \
  X(Float32, 64, 128, 0, false, false)   \
  X(Float32, 64, 256, 0, false, false)   \
  X(Float32, 128, 128, 0, false, false)  \
  X(Float32, 128, 256, 0, false, false)

}  // namespace clonewave
