// The attention decoder over the vectors of one vec_*.h, compiled once per instruction set. Products
// and their packing are those of wavenet_isa.h, which is included before; its rules hold here too.
//
// All taps of a convolution are one product over [tap][channel], so that a step reads the weights as
// one stream: that stream, not arithmetic, is what a step costs. Up to four utterances share it.
#pragma once

#include <stdlib.h>

namespace {

using clonewave::DecoderDims;
using clonewave::DecoderStream;
using clonewave::DecoderWeights;

constexpr int kSlots = 4;
constexpr float kRootHalf = 0.70710678118654752f;

size_t pack_decoder(const DecoderDims& d, const DecoderWeights& w, Precision p, uint8_t* packed) {
  const int c = d.channels, taps = d.kernel_size;
  const size_t layer = static_cast<size_t>(2 * c) * c * taps;
  Packer to{packed, 0};
  int width = d.mel;
  for (int i = 0; i < d.prenet_layers; width = d.prenet[i++]) {
    to.matrix(p, {w.prenet[i], d.prenet[i], width, width, 1});
  }
  to.matrix(p, {w.enter, c, width, width, 1});
  float* by_tap = static_cast<float*>(malloc(layer * sizeof(float)));
  for (int l = 0; by_tap && l < d.layers; ++l) {
    for (size_t i = 0; i < layer; ++i) {
      const size_t row = i / (c * taps), tap = i / c % taps, channel = i % c;
      by_tap[i] = w.convs[layer * l + (row * c + channel) * taps + tap];
    }
    to.matrix(p, {by_tap, 2 * c, c * taps, c * taps, 1});
  }
  const bool failed = by_tap == nullptr;
  free(by_tap);
  to.matrix(p, {w.mel, d.mel, c, c, 1});
  to.floats(w.mel_bias, d.mel);
  to.floats(w.done, c);
  to.floats(&w.done_bias, 1);
  for (int i = 0; i < d.elapsed_rows; ++i) to.floats(w.elapsed + i * c, c);
  for (int l = 0; l < d.layers; ++l) to.floats(w.conv_bias + l * 2 * c, 2 * c);
  return failed ? 0 : to.bytes;
}

// Where the vectors that follow the matrices lie.
struct DecoderTail {
  const float *mel_bias, *done, *done_bias, *elapsed, *conv_bias;
};

inline DecoderTail decoder_tail(const DecoderDims& d, const uint8_t* packed, size_t bytes) {
  const size_t c = d.channels, one = kWidth;
  const size_t floats = d.mel + c + one + d.elapsed_rows * c + d.layers * 2 * c;
  const float* at = reinterpret_cast<const float*>(packed + bytes) - floats;
  return {at, at + d.mel, at + d.mel + c, at + d.mel + c + one,
          at + d.mel + c + one + d.elapsed_rows * c};
}

inline float reduce_add(Float v) {  // a fixed order
  alignas(64) float lanes[kWidth];
  store(lanes, v);
  for (int n = kWidth / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] += lanes[i + n];
  }
  return lanes[0];
}

inline float dot_product(const float* a, const float* b, int n) {
  Float sum = splat(0);
  for (int i = 0; i < n; i += kWidth) sum = fma(load_any(a + i), load_any(b + i), sum);
  return reduce_add(sum);
}

// What one utterance needs while it runs.
struct DecoderSlot {
  DecoderStream* io;
  float* seen;   // [layers][kernel_size][C], inputs of each block, newest last
  float* bias;   // [layers][2C], with the speaker
  float* mixed;  // [2C]
  float* x;      // [C]
  float* mel;    // [M]
  float* prenet[2];
  uint8_t* encoded;
  int64_t move;
};

class DecoderRun {
 public:
  DecoderRun(const DecoderDims& d, const uint8_t* packed, size_t bytes)
      : d_(d), packed_(packed), tail_(decoder_tail(d, packed, bytes)) {
    widest_ = d.mel;
    for (int i = 0; i < d.prenet_layers; ++i) {
      if (d.prenet[i] > widest_) widest_ = d.prenet[i];
    }
  }
  ~DecoderRun() { free(block_); }

  bool reserve() {
    const size_t c = d_.channels, taps = d_.layers * d_.kernel_size * c;
    size_t encoded = (d_.kernel_size * c > static_cast<size_t>(widest_) ? d_.kernel_size * c : widest_);
    const size_t floats = taps + d_.layers * 2 * c + 3 * c + d_.mel + 2 * widest_ + encoded;
    block_ = malloc((kSlots * floats + 16) * sizeof(float));
    if (!block_) return false;
    float* next = static_cast<float*>(block_);
    next += (64 - reinterpret_cast<uintptr_t>(next) % 64) % 64 / sizeof(float);
    for (DecoderSlot& s : slots_) {
      s.seen = next, next += taps;
      s.bias = next, next += d_.layers * 2 * c;
      s.mixed = next, next += 2 * c;
      s.x = next, next += c;
      s.mel = next, next += d_.mel;
      s.prenet[0] = next, next += widest_;
      s.prenet[1] = next, next += widest_;
      s.encoded = reinterpret_cast<uint8_t*>(next), next += encoded;
    }
    return true;
  }

  // An utterance that is done makes room for the next.
  template <Precision P>
  void run(DecoderStream* streams, int batch, int64_t steps) {
    DecoderSlot* active[kSlots];
    for (int i = 0; i < kSlots; ++i) active[i] = slots_ + i;
    int running = 0, next = 0;
    for (;;) {
      for (; running < kSlots && next < batch; ++next) {
        streams[next].count = 0;
        if (!*streams[next].finished && steps > 0) enter(*active[running++], streams[next]);
      }
      if (running == 0) return;
      step_all<P>(active, running);
      for (int i = 0; i < running;) {
        DecoderSlot* s = active[i];
        if (!*s->io->finished && s->io->count < steps) {
          ++i;
          continue;
        }
        leave(*s);
        active[i] = active[--running];
        active[running] = s;
      }
    }
  }

 private:
  void enter(DecoderSlot& s, DecoderStream& io) {
    const int c = d_.channels, taps = d_.kernel_size;
    s.io = &io;
    copy(s.mel, io.mel, d_.mel);
    for (int l = 0; l < d_.layers; ++l) {
      for (int i = 0; i < c; ++i) {
        for (int t = 0; t + 1 < taps; ++t) {
          s.seen[(l * taps + t) * c + i] = io.history[(l * c + i) * (taps - 1) + t];
        }
      }
      copy(s.bias + l * 2 * c, tail_.conv_bias + l * 2 * c, 2 * c);
      for (int i = 0; i < c; ++i) s.bias[l * 2 * c + i] += io.speaker[l * c + i];
    }
  }

  void leave(DecoderSlot& s) {
    const int c = d_.channels, taps = d_.kernel_size;
    for (int i = 0; i < d_.mel; ++i) s.io->mel[i] = s.mel[i];
    for (int l = 0; l < d_.layers; ++l) {
      for (int i = 0; i < c; ++i) {
        for (int t = 0; t + 1 < taps; ++t) {
          s.io->history[(l * c + i) * (taps - 1) + t] = s.seen[(l * taps + t) * c + i];
        }
      }
    }
  }

  template <Precision P>
  void step_all(DecoderSlot* const* s, int running) {
    int n = 0;
    if (running == kSlots) step<P, 4>(s), n = 4;
    if (running - n >= 2) step<P, 2>(s + n), n += 2;
    if (running - n == 1) step<P, 1>(s + n);
  }

  // to[n] += W from[n] for the next matrix of the stream.
  template <Precision P, int N>
  const uint8_t* product(const uint8_t* w, int rows, int k, DecoderSlot* const* s,
                         const float* const* from, float* const* to) {
    Activation a[N];
    for (int n = 0; n < N; ++n) {
      a[n].storage = s[n]->encoded;
      encode<P>(from[n], k, a[n]);
    }
    return matvec<P, N>(w, rows, k, a, to);
  }

  template <Precision P, int N>
  const uint8_t* prenet(const uint8_t* w, DecoderSlot* const* s) {
    const int c = d_.channels;
    const float* from[N];
    float* to[N];
    for (int n = 0; n < N; ++n) from[n] = s[n]->mel;
    int width = d_.mel;
    for (int i = 0; i < d_.prenet_layers; width = d_.prenet[i++]) {
      const int rows = d_.prenet[i];
      for (int n = 0; n < N; ++n) {
        to[n] = s[n]->prenet[i % 2];
        copy(to[n], s[n]->io->prenet_bias[i], rows);
      }
      w = product<P, N>(w, rows, width, s, from, to);
      for (int n = 0; n < N; ++n) {
        for (int j = 0; j < rows; j += kWidth) store(to[n] + j, relu(load(to[n] + j)));
        from[n] = to[n];
      }
    }
    for (int n = 0; n < N; ++n) {
      const DecoderStream& io = *s[n]->io;
      const int64_t most = d_.elapsed_rows - 1;
      const float* elapsed = tail_.elapsed + (*io.elapsed < most ? *io.elapsed : most) * c;
      const float* attended = io.attended + *io.position * c;
      to[n] = s[n]->x;
      for (int j = 0; j < c; j += kWidth) {
        store(to[n] + j, add(load_any(attended + j), load(elapsed + j)));
      }
    }
    return product<P, N>(w, c, width, s, from, to);
  }

  template <Precision P, int N>
  const uint8_t* block(const uint8_t* w, int layer, DecoderSlot* const* s) {
    const int c = d_.channels, taps = d_.kernel_size;
    const float* from[N];
    float* to[N];
    for (int n = 0; n < N; ++n) {
      float* seen = s[n]->seen + static_cast<size_t>(layer) * taps * c;
      copy(seen + (taps - 1) * c, s[n]->x, c);
      from[n] = seen;
      to[n] = s[n]->mixed;
      copy(to[n], s[n]->bias + layer * 2 * c, 2 * c);
    }
    w = product<P, N>(w, 2 * c, taps * c, s, from, to);
    for (int n = 0; n < N; ++n) {
      const float* mixed = s[n]->mixed;
      float* x = s[n]->x;
      const Float one = splat(1), limit = splat(60);
      for (int j = 0; j < c; j += kWidth) {
        const Float power = mul(load(mixed + c + j), splat(-1.4426950408889634f));
        const Float b = exp2_bounded(clamp(power, splat(-60), limit));
        const Float gated = div(load(mixed + j), add(one, b));
        store(x + j, mul(add(load(x + j), gated), splat(kRootHalf)));
      }
      float* seen = s[n]->seen + static_cast<size_t>(layer) * taps * c;
      memmove(seen, seen + c, static_cast<size_t>(taps - 1) * c * sizeof(float));
    }
    return w;
  }

  void attend(int which, DecoderSlot& s) {
    const DecoderStream& io = *s.io;
    const int c = d_.channels;
    const int64_t at = *io.position, left = io.length - at;
    const int reach = left < d_.window ? static_cast<int>(left) : d_.window;
    float score[clonewave::kMaxWindow], total = 0;
    int best = 0;
    for (int j = 0; j < reach; ++j) {
      score[j] = dot_product(s.x, io.keys[which] + (at + j) * c, c) + io.key_bias[which][at + j];
      if (score[j] > score[best]) best = j;
    }
    if (which == 0) s.move = best;
    const float most = score[best];
    for (int j = 0; j < reach; ++j) total += score[j] = expf(score[j] - most);
    for (int i = 0; i < c; i += kWidth) {
      Float context = splat(0);
      for (int j = 0; j < reach; ++j) {
        const Float value = load_any(io.values[which] + (at + j) * c + i);
        context = fma(splat(score[j] / total), value, context);
      }
      store(s.x + i, mul(add(load(s.x + i), context), splat(kRootHalf)));
    }
  }

  // Moves on in the text, and ends with it.
  void advance(DecoderSlot& s) {
    DecoderStream& io = *s.io;
    const int64_t last = io.length - 1;
    const bool held = *io.elapsed + 1 >= d_.max_hold;
    int64_t move = s.move;
    if (held && move == 0 && *io.position < last) move = 1;
    *io.position += move;
    *io.elapsed = move > 0 ? 0 : *io.elapsed + 1;
    const bool done = dot_product(s.x, tail_.done, d_.channels) + *tail_.done_bias > 0;
    *io.finished = (done || held) && *io.position == last;
    for (int i = 0; i < d_.channels; i += kWidth) {
      store_any(io.hidden + io.count * d_.channels + i, load(s.x + i));
    }
    io.path[io.count++] = *io.position;
  }

  template <Precision P, int N>
  void step(DecoderSlot* const* s) {
    const uint8_t* w = prenet<P, N>(packed_, s);
    for (int n = 0; n < N; ++n) s[n]->move = 0;
    for (int layer = 0; layer < d_.layers; ++layer) {
      w = block<P, N>(w, layer, s);
      const int which = d_.attention_of[layer];
      for (int n = 0; which >= 0 && n < N; ++n) attend(which, *s[n]);
    }
    const float* from[N];
    float* to[N];
    for (int n = 0; n < N; ++n) {
      advance(*s[n]);
      from[n] = s[n]->x, to[n] = s[n]->mel;
      copy(to[n], tail_.mel_bias, d_.mel);
    }
    product<P, N>(w, d_.mel, d_.channels, s, from, to);
  }

  const DecoderDims& d_;
  const uint8_t* packed_;
  const DecoderTail tail_;
  int widest_;
  void* block_ = nullptr;
  DecoderSlot slots_[kSlots];
};

bool generate_decoder(const DecoderDims& d, const uint8_t* packed, size_t bytes, Precision p,
                      DecoderStream* streams, int batch, int64_t steps) {
  DecoderRun run(d, packed, bytes);
  if (!run.reserve()) return false;
  if (p == kF32) run.run<kF32>(streams, batch, steps);
  if (p == kBf16) run.run<kBf16>(streams, batch, steps);
  if (p == kS8) run.run<kS8>(streams, batch, steps);
  return true;
}

}  // namespace
