// The attention decoder over the vectors of one vec_*.h, compiled once per instruction set. Products
// and their packing are those of wavenet_isa.h, which is included before; its rules hold here too.
//
// Reading the weights, not arithmetic, is what a step costs; a read is shared as widely as possible.
// Up to four utterances share it. Of a lone utterance, steps share it: the tap that looks `age` steps
// back is known for the next `age` steps, so an old tap's weights are read once for several of them.
// Each step adds its taps oldest first, however many steps or utterances were taken together.
#pragma once

#include <stdlib.h>

#include "decoder_pack.h"

namespace {

using clonewave::DecoderStream;

constexpr int kSlots = 4;
constexpr int kAhead = 4;  // steps of one utterance that share a read of the oldest taps
constexpr float kRootHalf = 0.70710678118654752f;

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
  float* seen;          // [kernel_size][layers][C], inputs of the blocks, a ring over steps
  Activation* encoded;  // [kernel_size][layers], the same
  float* bias;          // [layers][2C], with the speaker
  float* mixed;         // [kAhead][layers][2C], of this step and those after it
  float* x;             // [C]
  float* mel;           // [M]
  float* prenet[2];
  uint8_t* scratch;
  int newest;     // place in the ring
  int64_t ahead;  // steps since `mixed` was begun
  int64_t move;
};

class DecoderRun {
 public:
  DecoderRun(const DecoderDims& d, const uint8_t* packed, size_t bytes)
      : d_(d), packed_(packed), tail_(decoder_tail(d, packed, bytes)) {
    widest_ = d.mel > d.channels ? d.mel : d.channels;
    for (int i = 0; i < d.prenet_layers; ++i) {
      if (d.prenet[i] > widest_) widest_ = d.prenet[i];
    }
  }
  ~DecoderRun() { free(block_); }

  bool reserve() {
    const size_t c = d_.channels, inputs = d_.layers * d_.kernel_size;
    const size_t mixed = d_.layers * 2 * c, wide = widest_;
    const size_t entries = (inputs * sizeof(Activation) + 63) / 64 * 64;
    const size_t floats = 2 * inputs * c + (1 + kAhead) * mixed + c + d_.mel + 3 * wide;
    block_ = malloc(kSlots * (floats * sizeof(float) + entries) + 64);
    if (!block_) return false;
    uint8_t* next = static_cast<uint8_t*>(block_);
    next += (64 - reinterpret_cast<uintptr_t>(next) % 64) % 64;
    const auto take_floats = [&next](size_t n) {
      float* at = reinterpret_cast<float*>(next);
      next += n * sizeof(float);
      return at;
    };
    for (DecoderSlot& s : slots_) {
      s.encoded = reinterpret_cast<Activation*>(next), next += entries;
      s.seen = take_floats(inputs * c);
      uint8_t* storage = reinterpret_cast<uint8_t*>(take_floats(inputs * c));
      for (size_t i = 0; i < inputs; ++i) s.encoded[i].storage = storage + i * c * sizeof(float);
      s.bias = take_floats(mixed), s.mixed = take_floats(kAhead * mixed);
      s.x = take_floats(c), s.mel = take_floats(d_.mel);
      s.prenet[0] = take_floats(wide), s.prenet[1] = take_floats(wide);
      s.scratch = reinterpret_cast<uint8_t*>(take_floats(wide));
    }
    return true;
  }

  // An utterance that is done makes room for the next.
  template <Precision P>
  void run(DecoderStream* streams, int batch, int64_t steps) {
    past_ = packed_ + bytes_of_critical<P>();
    tap_bytes_ = bytes_of_matrix<P>(2 * d_.channels, d_.channels);
    DecoderSlot* active[kSlots];
    for (int i = 0; i < kSlots; ++i) active[i] = slots_ + i;
    int running = 0, next = 0;
    for (;;) {
      const int before = running;
      for (; running < kSlots && next < batch; ++next) {
        streams[next].count = 0;
        if (!*streams[next].finished && steps > 0) enter<P>(*active[running++], streams[next]);
      }
      if (running == 0) return;
      if (running != before) restart(active, running);
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
        restart(active, running);
      }
    }
  }

 private:
  // Others share a step from now on: nothing has been computed ahead.
  void restart(DecoderSlot* const* s, int running) {
    for (int i = 0; i < running; ++i) s[i]->ahead = 0;
  }

  int place(const DecoderSlot& s, int ago) const {
    return (s.newest - ago + d_.kernel_size) % d_.kernel_size;
  }

  // Input of `layer`, `ago` steps before the newest.
  size_t entry(const DecoderSlot& s, int ago, int layer) const {
    return static_cast<size_t>(place(s, ago)) * d_.layers + layer;
  }

  // history is [layers][C][kernel_size - 1], newest last.
  size_t in_history(int layer, int channel, int ago) const {
    const int past = d_.kernel_size - 1;
    return (static_cast<size_t>(layer) * d_.channels + channel) * past + past - 1 - ago;
  }

  template <Precision P>
  void enter(DecoderSlot& s, DecoderStream& io) {
    const int c = d_.channels;
    s.io = &io;
    s.newest = 0;
    copy(s.mel, io.mel, d_.mel);
    for (int l = 0; l < d_.layers; ++l) {
      for (int ago = 0; ago + 1 < d_.kernel_size; ++ago) {
        const size_t at = entry(s, ago, l);
        float* seen = s.seen + at * c;
        for (int i = 0; i < c; ++i) seen[i] = io.history[in_history(l, i, ago)];
        encode<P>(seen, c, s.encoded[at]);
      }
      copy(s.bias + l * 2 * c, tail_.conv_bias + l * 2 * c, 2 * c);
      for (int i = 0; i < c; ++i) s.bias[l * 2 * c + i] += io.speaker[l * c + i];
    }
  }

  void leave(DecoderSlot& s) {
    const int c = d_.channels;
    for (int i = 0; i < d_.mel; ++i) s.io->mel[i] = s.mel[i];
    for (int l = 0; l < d_.layers; ++l) {
      for (int ago = 0; ago + 1 < d_.kernel_size; ++ago) {
        const float* seen = s.seen + entry(s, ago, l) * c;
        for (int i = 0; i < c; ++i) s.io->history[in_history(l, i, ago)] = seen[i];
      }
    }
  }

  template <Precision P>
  size_t bytes_of_critical() const {
    size_t bytes = 0;
    int width = d_.mel;
    for (int i = 0; i < d_.prenet_layers; width = d_.prenet[i++]) {
      bytes += bytes_of_matrix<P>(d_.prenet[i], width);
    }
    bytes += bytes_of_matrix<P>(d_.channels, width);
    bytes += d_.layers * bytes_of_matrix<P>(2 * d_.channels, d_.channels);
    return bytes + bytes_of_matrix<P>(d_.mel, d_.channels);
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
      a[n].storage = s[n]->scratch;
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

  // Steps of a lone utterance for which the tap `age` steps back is taken together.
  static int together(int age) { return age >= 4 ? 4 : age >= 2 ? 2 : 1; }

  float* mixed(const DecoderSlot& s, int64_t step, int layer) const {
    return s.mixed + (step % kAhead * d_.layers + layer) * 2 * d_.channels;
  }

  // Adds the tap `age` steps back to `count` steps of s[0], or to this step of each of N.
  template <Precision P, int N>
  void add_tap(const uint8_t* w, int age, int layer, DecoderSlot* const* s, bool steps) {
    Activation a[N];
    float* to[N];
    for (int n = 0; n < N; ++n) {
      const DecoderSlot& slot = steps ? *s[0] : *s[n];
      const int later = steps ? n : 0;
      a[n] = slot.encoded[entry(slot, age - 1 - later, layer)];
      to[n] = mixed(slot, slot.ahead + later, layer);
    }
    matvec<P, N>(w, 2 * d_.channels, d_.channels, a, to);
  }

  void begin(DecoderSlot& s, int steps) {
    const int size = 2 * d_.channels * d_.layers;
    for (int i = 0; i < steps; ++i) copy(mixed(s, s.ahead + i, 0), s.bias, size);
  }

  // What the past adds to the blocks of this step, of a lone utterance to those after it too.
  template <Precision P, int N>
  void past(DecoderSlot* const* s) {
    const uint8_t* w = past_;
    const int oldest = d_.kernel_size - 1;
    const int first = N == 1 && oldest > 0 ? together(oldest) : 1;
    for (int n = 0; n < N; ++n) {
      if (s[n]->ahead % first == 0) begin(*s[n], first);
    }
    for (int age = oldest; age > 0; --age) {
      const int count = N == 1 ? together(age) : 1;
      if (s[0]->ahead % count) {
        w += d_.layers * tap_bytes_;
        continue;
      }
      for (int layer = 0; layer < d_.layers; ++layer, w += tap_bytes_) {
        if (count == 4) add_tap<P, 4>(w, age, layer, s, true);
        if (count == 2) add_tap<P, 2>(w, age, layer, s, true);
        if (count == 1) add_tap<P, N>(w, age, layer, s, false);
      }
    }
  }

  template <Precision P, int N>
  const uint8_t* block(const uint8_t* w, int layer, DecoderSlot* const* s) {
    const int c = d_.channels;
    Activation a[N];
    float* to[N];
    for (int n = 0; n < N; ++n) {
      const size_t at = entry(*s[n], 0, layer);
      copy(s[n]->seen + at * c, s[n]->x, c);
      encode<P>(s[n]->seen + at * c, c, s[n]->encoded[at]);
      a[n] = s[n]->encoded[at];
      to[n] = mixed(*s[n], s[n]->ahead, layer);
    }
    w = matvec<P, N>(w, 2 * c, c, a, to);
    for (int n = 0; n < N; ++n) {
      float* x = s[n]->x;
      const Float one = splat(1), limit = splat(60);
      for (int j = 0; j < c; j += kWidth) {
        const Float power = mul(load(to[n] + c + j), splat(-1.4426950408889634f));
        const Float b = exp2_bounded(clamp(power, splat(-60), limit));
        const Float gated = div(load(to[n] + j), add(one, b));
        store(x + j, mul(add(load(x + j), gated), splat(kRootHalf)));
      }
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
    past<P, N>(s);
    const uint8_t* w = prenet<P, N>(packed_, s);
    for (int n = 0; n < N; ++n) {
      s[n]->newest = (s[n]->newest + 1) % d_.kernel_size;
      s[n]->move = 0;
    }
    for (int layer = 0; layer < d_.layers; ++layer) {
      w = block<P, N>(w, layer, s);
      const int which = d_.attention_of[layer];
      for (int n = 0; which >= 0 && n < N; ++n) attend(which, *s[n]);
    }
    const float* from[N];
    float* to[N];
    for (int n = 0; n < N; ++n) {
      advance(*s[n]);
      ++s[n]->ahead;
      from[n] = s[n]->x, to[n] = s[n]->mel;
      copy(to[n], tail_.mel_bias, d_.mel);
    }
    product<P, N>(w, d_.mel, d_.channels, s, from, to);
  }

  const DecoderDims& d_;
  const uint8_t* packed_;
  const DecoderTail tail_;
  const uint8_t* past_ = nullptr;
  size_t tap_bytes_ = 0;
  int widest_;
  void* block_ = nullptr;
  DecoderSlot slots_[kSlots];
};

bool generate_decoder(const DecoderDims& d, const uint8_t* packed, size_t bytes, Precision p,
                      DecoderStream* streams, int batch, int64_t steps) {
  DecoderRun run(d, packed, bytes);
  if (!run.reserve()) return false;
  if (p == kF32) run.run<kF32>(streams, batch, steps);
  if constexpr (kHalves) {
    if (p == kF16) run.run<kF16>(streams, batch, steps);
  }
  if (p == kBf16) run.run<kBf16>(streams, batch, steps);
  if (p == kS16) run.run<kS16>(streams, batch, steps);
  if (p == kS8) run.run<kS8>(streams, batch, steps);
  return true;
}

}  // namespace
