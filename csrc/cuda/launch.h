// Host side of the CUDA kernels: variants, sizes, launches. Device pointers in; no Python.
#pragma once

#include <cstddef>

#include "decoder_params.h"
#include "slots.h"
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

// The shared memory of a decoder block: activations, then as many matrices as fit into `room`
// bytes, convolutions first; the others stay in L2. False if not even activations fit.
bool decoder_layout(DecoderParams& params, bool float32, int room);

// Starts the kernel of `variant` over params.slots on `stream` (a cudaStream_t) of the current
// device and returns at once. Returns nullptr, or what went wrong, in words that stay valid.
//
// Numerics: bfloat16 or float32 products; accumulation, residual stream, skip sum, nonlinearities
//           and sampling in float32. Equal bits whatever the chunk, the slot and the neighbours.
// Threads:  callable from any; slots, weights and everything they point to live until the stream
//           has passed the launch, and no two launches may run on one slot's state at a time.
const char* wavenet_launch_ring(const WaveNetVariant& variant, const WaveNetParams& params,
                                void* stream);
const char* wavenet_launch_plain(const WaveNetVariant& variant, const WaveNetParams& params,
                                 void* stream);
// Fills a table of slots on the device; the launch that reads it follows on the same stream.
const char* slots_fill(const SlotTable& table, void* stream);

// The same for the decoder: in clusters of params.blocks > 1, or one block for eight utterances.
const char* decoder_launch_cluster(bool float32, const DecoderParams& params, void* stream);
const char* decoder_launch_plain(bool float32, const DecoderParams& params, void* stream);

// Shared memory that a block may have on the current device, in bytes; -1 and `error` if unknown.
int shared_memory_room(const char** error);

// Rings of this variant that the current device holds at once; -1 and `error` if it cannot say.
int wavenet_resident_rings(const WaveNetVariant& variant, const WaveNetParams& params,
                           const char** error);

}  // namespace clonewave
