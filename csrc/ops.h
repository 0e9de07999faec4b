// Declarations and contracts of the native CPU ops. Raw pointers and sizes; no Python, no torch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "decoder.h"
#include "wavenet.h"

namespace clonewave {

// Autoregressive WaveNet: one step for all bands at a time, the last two outputs fed back in.
//
//   x = W_in [y[t-2]; y[t-1]]
//   [f; g] = W_prev x[t - dilation] + W_cur x[t] + conditioning[t / band_steps_per_frame]
//   z = tanh(f) * sigmoid(g);  x += W_res z;  skip += W_skip z
//   o = W_out relu(W_hidden relu(skip) + b) + b
//   Gaussian head: y[b] = o[b] + exp(o[bands + b]) * randomness[b][t]
//   softmax head:  y = first k with cumsum(softmax(o))[k] > randomness[0][t], fed back in [-1, 1]
//
// Shapes:   see WaveNetStream; row-major.
// Units:    one band step = `bands` audio samples.
// Numerics: residual stream, skip sum and nonlinearities are float32 in every precision.
//           bfloat16: weights and matrix inputs rounded to bfloat16. int8: weights with a scale per
//           row, matrix inputs with a scale per vector, the head in bfloat16. Fixed summation order:
//           equal inputs give equal bits on one instruction set, in calls of any size and in any
//           batch. Values that are not finite pass through; nothing is raised for them.
// Threads:  calls with distinct streams may run concurrently on one WaveNet. A call of one stream and
//           `cores` 2 is helped by a second thread, kept asleep between such calls and shared by
//           all, where one is free; it changes no bit. Otherwise none is started.
// Source:   arXiv:1609.03499 section 2; layer variant 1702.07825; Gaussian head 1807.07281.
class WaveNet {
 public:
  // Packs the weights for one instruction set. `isa` is a name of kIsas that runs here.
  WaveNet(const WaveNetDims& dims, const WaveNetWeights& weights, Precision precision,
          const char* isa);
  ~WaveNet();
  WaveNet(const WaveNet&) = delete;
  WaveNet& operator=(const WaveNet&) = delete;

  void generate(const WaveNetStream* streams, int batch, int64_t band_steps,
                int cores = 1) const noexcept;
  const WaveNetDims& dims() const { return dims_; }
  const char* isa() const;
  size_t packed_bytes() const { return packed_bytes_; }

 private:
  bool generate_split(const WaveNetStream& stream, int64_t band_steps) const noexcept;

  WaveNetDims dims_;
  Precision precision_;
  const struct Isa* isa_;
  int* dilations_;
  uint8_t* packed_;
  size_t packed_bytes_;
};

// Attention decoder of Deep Voice 3, free-running: text and speaker, folded, to hidden states.
//
//   x = W_enter relu(W_prenet mel + bias ...) + attended[position] + elapsed
//   each block: [v; g] = causal conv(x) + bias;  x = sqrt(.5) (x + (v + speaker) sigmoid(g))
//   attention after some: x = sqrt(.5) (x + softmax(x . keys[window] + key_bias) . values[window])
//   mel = W_mel x + b; position, elapsed and finished as reference_decoder.decoder_generate has them
//
// Shapes:   see DecoderStream; row-major. hidden and path have room for `steps` of each utterance;
//           of those up to the largest count are written, beyond an utterance's own count with 0 and
//           its last position.
// Units:    one decoder step = reduction_factor mel frames.
// Numerics: residual stream, nonlinearities, attention and done flag are float32 in every precision;
//           the rest as in WaveNet, int8 throughout. Fixed summation order: equal inputs give equal
//           bits on one instruction set, in calls of any size and in any batch.
// Threads:  starts none; calls with distinct streams may run concurrently on one Decoder.
// Errors:   false if there is no memory, and nothing is changed.
// Source:   arXiv:1710.07654, section 3.5 and appendix B.
class Decoder {
 public:
  // Packs the weights for one instruction set. `isa` is a name of kIsas that runs here.
  Decoder(const DecoderDims& dims, const DecoderWeights& weights, Precision precision,
          const char* isa);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  bool generate(DecoderStream* streams, int batch, int64_t steps) const noexcept;
  const DecoderDims& dims() const { return dims_; }
  const char* isa() const;
  size_t packed_bytes() const { return packed_bytes_; }

 private:
  DecoderDims dims_;
  Precision precision_;
  const struct Isa* isa_;
  uint8_t* packed_;
  size_t packed_bytes_;
};

// Whether all of `values` are float16 numbers, NaN and infinities not; the bits of one that is.
bool all_halves(const float* values, size_t n) noexcept;
uint16_t exact_half(float value) noexcept;

// An instruction set this build has code for. Fastest first.
struct Isa {
  const char* name;
  bool (*runs_here)();
  bool halves;  // has code for Precision::kHalf
  // Writes the weights in execution order; packed = nullptr only measures. Returns bytes.
  size_t (*pack)(const WaveNetDims&, const WaveNetWeights&, Precision, uint8_t* packed);
  void (*generate)(const WaveNetDims&, const uint8_t* packed, Precision, const WaveNetStream*,
                   int batch, int64_t band_steps);
  // One stream on two cores: the halves of it, run at once over one Exchange of split.h.
  void (*lead)(const WaveNetDims&, const uint8_t* packed, Precision, const WaveNetStream*,
               int64_t band_steps, struct Exchange*);
  void (*follow)(const WaveNetDims&, const uint8_t* packed, Precision, const WaveNetStream*,
                 int64_t band_steps, struct Exchange*);
  size_t (*pack_decoder)(const DecoderDims&, const DecoderWeights&, Precision, uint8_t* packed);
  bool (*generate_decoder)(const DecoderDims&, const uint8_t* packed, size_t packed_bytes, Precision,
                           DecoderStream*, int batch, int64_t steps);
};
extern const Isa* const kIsas[];
extern const int kIsaCount;
// Throws std::invalid_argument if `name` is not among kIsas or does not run here.
const Isa* find_isa(const char* name);

// y[t] = gain e[t] + sum_k taps[k] y[t - 1 - k] for independent rows (batch x bands).
//   excitation, out [rows][steps]; taps [rows][order][frames]; gain [rows][frames];
//   state [rows][order], last outputs, newest first, updated. steps = frames * steps_per_frame.
// Numerics: float32. Source: inverse of the LPCNet excitation (arXiv:1810.11846).
void lpc_synthesis(const float* excitation, const float* taps, const float* gain, float* state,
                   float* out, int64_t rows, int order, int64_t frames, int64_t steps) noexcept;

// Synthesis filter bank: out[m] = sum_b sum_k filters[b][k] up_b[m + k - length / 2], where
// up_b[bands * n] = band_samples[b][n] and zero elsewhere and outside.
//   band_samples [batch][bands][steps]; filters [bands][length], length odd; out [batch][bands * steps].
// Numerics: float32, polyphase. Source: cosine-modulated filter bank, Nguyen 1994.
void pqmf_synthesis(const float* band_samples, const float* filters, float* out, int64_t batch,
                    int bands, int length, int64_t steps);

// Counter-based standard normal noise, out [bands][steps]: four bands share the Philox4x32-10 block
// of key `seed` and counter (step low, step high, stream, band / 4); Box-Muller in float32.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
void gaussian_noise(uint64_t seed, uint32_t stream, uint64_t first_step, int bands, int64_t steps,
                    float* out) noexcept;

}  // namespace clonewave
