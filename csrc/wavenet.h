// Sizes, weights and per-stream state of a WaveNet, shared by all native implementations.
#pragma once

#include <cstddef>
#include <cstdint>

namespace clonewave {

// kHalf is float32 with weights that all are float16 numbers, stored so: the same products from half
// the bytes. Networks choose it themselves.
enum class Precision { kFloat32, kHalf, kBfloat16, kInt16, kInt8 };  // kInt16: decoder only

struct WaveNetDims {
  int bands;
  int layers;
  int residual_channels;  // R, a multiple of kChannelStep
  int skip_channels;      // S, a multiple of kChannelStep
  int outputs;            // O: 2 * bands (Gaussian) or the number of codes (softmax)
  int band_steps_per_frame;
  const int* dilations;  // [layers]
  bool softmax;
};

constexpr int kChannelStep = 16;
constexpr int kMaxChannels = 512;  // of R, S, O and 2 * bands
constexpr size_t kAlignment = 64;

// Row-major float32, as in reference.WaveNetWeights; tap 0 is the past, tap 1 is now.
struct WaveNetWeights {
  const float* inputs;        // [R][bands][2]
  const float* gates;         // [layers][2R][R][2]
  const float* residuals;     // [layers][R][R], the last unused
  const float* skips;         // [layers][S][R]
  const float* skip_bias;     // [S]
  const float* hidden;        // [S][S]
  const float* hidden_bias;   // [S]
  const float* outputs;       // [O][S]
  const float* outputs_bias;  // [O]
};

// One stream of a call. The caller owns everything; state is updated in place.
struct WaveNetStream {
  const float* conditioning;  // [frames][layers][2R]
  const float* randomness;    // [bands][band_steps]
  float* out;                 // [bands][band_steps]
  float* last;                // [bands][2], newest last
  float* history;             // [sum of dilations][R], a ring per layer, slot = step % dilation
  int64_t* step;              // band steps generated so far, >= 0
};

}  // namespace clonewave
