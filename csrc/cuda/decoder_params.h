// What a launch of the decoder kernel is told; shared by host and device. Contract: launch.h.
#pragma once

#include <cstdint>

#include "../decoder.h"
#include "sizes.h"

namespace clonewave {

// Weight matrices of a step in the order of their products: prenet layers, enter, the current tap
// of each convolution, mel. The past taps of the convolutions follow, a matrix for each tap.
constexpr int kMaxMatrices = kMaxPrenet + 1 + kMaxDecoder + 1;

struct DecoderMatrix {
  int64_t offset;  // of its packed tiles, in elements
  int rows, depth;  // depth padded to a whole operand
  int shared;       // where a block keeps its tiles, in bytes of shared memory; -1 = read from L2
};

// One utterance of a launch. State is updated in place at the end of the launch.
struct DecoderSlot {
  const float* prenet_bias[kMaxPrenet];  // [P0], ...
  const float* attended;                 // [symbols][C]
  const float* speaker;                  // [layers][C]
  const float* keys;                     // [symbols][C] of attention 0; the next is `stride` rows on
  const float* key_bias;                 // [symbols]
  const float* values;                   // [symbols][C]
  float* mel;                            // [M]
  float* history;                        // [layers][C][kernel_size - 1], newest last
  int64_t* position;
  int64_t* elapsed;
  bool* finished;
  float* hidden;   // out [steps][C]
  int64_t* path;   // out [steps]
  int64_t* count;  // out: steps until finished
  int64_t stride;  // rows from one attention's keys to the next
  const int64_t* length;  // symbols
};

struct DecoderParams {
  const DecoderSlot* slots;  // [count]
  const void* weights;       // packed tiles, kernels/cuda_pack.py
  const float* floats;       // conv_bias in tile order [layers][2C], mel_bias [M], done [C],
                             // elapsed [rows][C]
  float* scratch;            // [groups][blocks][layers][kernel_size - 1][kColumns][C]
  float done_bias;
  int count, steps;
  int blocks;                // of a cluster; 1 = no cluster
  int mel, channels, layers, kernel_size, prenet_layers, elapsed_rows, window, max_hold;
  int attention_of[kMaxDecoder];  // which attention follows a layer, -1 = none
  int matrices;                   // in use of `matrix`
  DecoderMatrix matrix[kMaxMatrices];
  DecoderMatrix past[kMaxDecoder];  // past taps of a layer, one after the other, each [2C][C]
  int inbox_floats;               // of the largest exchange
  int operand_stride;             // floats from column to column of the operand
  int past_at, shared_bytes;      // bytes of shared memory
};

}  // namespace clonewave
