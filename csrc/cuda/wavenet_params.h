// What a launch of the WaveNet kernels is told; shared by host and device. Contract: launch.h.
#pragma once

#include <cstdint>

#include "sizes.h"

namespace clonewave {

constexpr int kMaxRingLayers = 64;
constexpr int kMaxRingBands = 8;

// One stream of a launch: a slot. State is updated in place at the end of the launch.
struct WaveNetSlot {
  const float* conditioning;  // [frames][layers][2R]
  const float* randomness;    // [bands][stride], nullptr: drawn in the kernel (Gaussian head)
  float* out;                 // [bands][stride]
  float* last;                // [bands][2], newest last
  float* history;             // [sum of dilations][R], a ring per layer, slot = step % dilation
  int64_t* step;              // band steps generated so far
  int64_t stride;             // elements from band to band of randomness and out
  uint64_t seed;              // of noise drawn in the kernel
  uint32_t stream;
  int32_t steps;              // band steps to generate, 0 = an empty slot
  int64_t frames;             // of the conditioning; steps beyond them give NaN
};

struct WaveNetParams {
  const WaveNetSlot* slots;  // [count]
  const void* weights;       // packed tiles, kernels/cuda_pack.py
  const float* floats;       // inputs [R][bands][2], skip_bias [S], hidden_bias [S], outputs_bias
  int count;
  int blocks;                // of a ring
  int bands, layers, layers_per_block;
  int output_tiles;          // of 16 rows
  int codes;                 // of the softmax head, 0 = Gaussian
  int steps_per_frame;
  int dilations[kMaxRingLayers];  // powers of two
  int rings[kMaxRingLayers];      // where a layer's history starts: the sum of dilations before it
};

}  // namespace clonewave
