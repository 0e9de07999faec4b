// Sizes, weights and per-utterance state of the attention decoder, shared by all native
// implementations.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clonewave {

constexpr int kMaxPrenet = 4;     // prenet layers
constexpr int kMaxDecoder = 16;   // decoder layers
constexpr int kMaxWindow = 16;    // symbols seen by the attention

// mel, channels and prenet widths are multiples of kChannelStep.
struct DecoderDims {
  int mel;       // M
  int channels;  // C
  int layers;
  int kernel_size;
  int prenet_layers;  // at least 1
  int prenet[kMaxPrenet];
  int elapsed_rows;
  int attention_layers;
  int attention_of[kMaxDecoder];  // which attention follows a layer, -1 = none
  int window;
  int max_hold;
};

// Row-major float32, as in reference_decoder.DecoderWeights.
struct DecoderWeights {
  const float* prenet[kMaxPrenet];  // [P0][M], [P1][P0], ...
  const float* enter;               // [C][P last]
  const float* elapsed;             // [elapsed_rows][C]
  const float* convs;               // [layers][2C][C][kernel_size]
  const float* conv_bias;           // [layers][2C]
  const float* mel;                 // [M][C]
  const float* mel_bias;            // [M]
  const float* done;                // [C]
  float done_bias;
};

// One utterance of a call. The caller owns everything; state is updated in place.
struct DecoderStream {
  const float* prenet_bias[kMaxPrenet];  // [P0], ...
  const float* attended;                 // [symbols][C]
  const float* speaker;                  // [layers][C]
  const float* keys[kMaxDecoder];        // [symbols][C] of each attention
  const float* key_bias[kMaxDecoder];    // [symbols] of each attention
  const float* values[kMaxDecoder];      // [symbols][C] of each attention
  int64_t length;                        // symbols, at least 1
  float* mel;                            // [M]
  float* history;                        // [layers][C][kernel_size - 1], newest last
  int64_t* position;                     // in [0, length)
  int64_t* elapsed;                      // >= 0
  bool* finished;
  float* hidden;  // out [steps][C]
  int64_t* path;  // out [steps]
  int64_t count;  // out: valid steps
};

}  // namespace clonewave
