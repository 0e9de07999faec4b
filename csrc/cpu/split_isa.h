// One stream on two cores, sample for sample what one core makes. Included after wavenet_isa.h.
//
// The leader does what a step waits for: present and residual products, gates, the last layers of the
// skip sum, head. The follower does the rest, a step's gates' past while the leader is in the step
// before, and the skip sum behind it. A follower that keeps the leader waiting, because the system
// took its core away, is left behind, and the leader goes on alone.
#pragma once

#include "../split.h"

namespace {

using clonewave::Exchange;
using clonewave::SharedCount;

constexpr int kPatience = 1000;  // pauses of the processor, some 10 to 50 microseconds
constexpr int kOwnSkips = 2;     // layers whose skip product is the leader's, so that it never waits

// A hand-off costs both cores a miss: layers are handed over in twos, and a line is asked for before
// it is needed.
inline bool hands_over(int layer, int layers) { return layer % 2 == 1 || layer + 1 == layers; }

inline void prefetch_floats(const float* p, int n) {
  for (int i = 0; i < n; i += 16) prefetch(p + i);
}

inline bool reached(const SharedCount& count, int64_t value) {
  return __atomic_load_n(&count.value, __ATOMIC_ACQUIRE) >= value;
}

inline void publish(SharedCount& count, int64_t value) {
  __atomic_store_n(&count.value, value, __ATOMIC_RELEASE);
}

template <Precision P>
class Half : protected Generator<P, 1> {
 public:
  Half(const WaveNetDims& d, const uint8_t* packed, const WaveNetStream* s, int64_t steps, Exchange* e)
      : Base(d, packed, s, steps), e_(e) {
    first_ = packed + bytes_of_vector(d.skip_channels) + bytes_of_matrix<kF32>(r_, 2 * d.bands);
    gate_ = bytes_of_matrix<P>(2 * r_, r_);
    residual_ = bytes_of_matrix<P>(r_, r_);
    layer_ = 2 * gate_ + residual_ + bytes_of_matrix<P>(d.skip_channels, r_);
    own_ = d.layers > kOwnSkips ? d.layers - kOwnSkips : 0;
  }

 protected:
  using Base = Generator<P, 1>;
  using Base::d_;
  using Base::r_;
  using Base::work_;

  // Where pack() puts the matrices of a layer: the next layer's past is with the present.
  const uint8_t* past_of(int layer) const {
    return layer == 0 ? first_ : first_ + (layer - 1) * layer_ + 2 * gate_;
  }
  const uint8_t* present_of(int layer) const { return first_ + gate_ + layer * layer_; }
  const uint8_t* residual_of(int layer) const { return present_of(layer) + 2 * gate_; }
  const uint8_t* skip_of(int layer) const {
    const bool last = layer + 1 == d_.layers;
    return present_of(layer) + gate_ + (last ? 0 : gate_ + residual_);
  }

  float* past(int64_t step, int layer) const {
    return e_->past + ((step & 1) * d_.layers + layer) * 2 * r_;
  }
  float* skip(int64_t step) const { return e_->skip + (step & 1) * row_vectors(d_.skip_channels) * kWidth; }
  float* z(int64_t step, int layer) const {
    const size_t at = (step & 1) * d_.layers + layer;
    return reinterpret_cast<float*>(e_->gated + at * e_->gated_bytes);
  }
  Activation& gated(int64_t step, int layer) const {
    return *reinterpret_cast<Activation*>(z(step, layer) + r_);
  }
  void add_skip(int64_t step, int layer) {
    matvec<P, 1>(skip_of(layer), d_.skip_channels, r_, &gated(step, layer), work_.skip);
  }

  Exchange* const e_;
  const uint8_t* first_;
  size_t gate_, residual_, layer_;
  int own_;  // first layer whose skip product is the leader's
};

template <Precision P>
class Leader : Half<P> {
  using Base = Generator<P, 1>;
  using Half<P>::d_;
  using Half<P>::r_;
  using Half<P>::e_;
  using Half<P>::work_;

 public:
  using Half<P>::Half;

  void run() {
    for (int64_t t = 0; t < this->steps_; ++t) {
      if (!together_ && reached(e_->ready, term_)) {
        joined_ = t;
        together_ = true;
        ahead_ = 0;
        publish(e_->sent, 0);
        publish(e_->start, t + 1);
      }
      if (together_) {
        shared_step(t);
      } else {
        Base::step(t);
      }
      Base::advance();
    }
    publish(e_->quit, clonewave::kNoMoreTerms);
  }

 private:
  bool wait_for(const SharedCount& count, int64_t value) {
    if (!together_) return false;
    for (int i = 0; i < kPatience; ++i) {
      if (reached(count, value)) return true;
      relax();
    }
    together_ = false;
    publish(e_->start, 0);
    publish(e_->quit, term_++);
    return false;
  }

  // The gates of `layer` so far.
  void gates(int64_t t, int layer, int64_t ring) {
    const int64_t wanted = (t - joined_) * d_.layers + layer + 1;
    if (together_ && (ahead_ >= wanted || wait_for(e_->ahead, wanted))) {
      if (ahead_ < wanted) ahead_ = __atomic_load_n(&e_->ahead.value, __ATOMIC_ACQUIRE);
      if (ahead_ >= wanted + 2 && layer + 2 < d_.layers) {
        prefetch_floats(this->past(t - joined_, layer + 2), 2 * r_);
      }
      copy(work_.hidden[0], this->past(t - joined_, layer), 2 * r_);
      return;
    }
    this->look_ahead(this->past_of(layer), layer, ring);
    copy(work_.hidden[0], work_.ahead[0], 2 * r_);
  }

  void skip_so_far(int64_t t) {
    if (this->own_ == 0) return;
    if (wait_for(e_->summed, t - joined_ + 1)) {
      copy(work_.skip[0], this->skip(t - joined_), d_.skip_channels);
      return;
    }
    for (int layer = 0; layer < this->own_; ++layer) this->add_skip(t - joined_, layer);
  }

  void shared_step(int64_t t) {
    Base::begin();
    int64_t ring = 0;
    for (int layer = 0; layer < d_.layers; ring += d_.dilations[layer++]) {
      gates(t, layer, ring);
      encode<P>(work_.x[0], r_, work_.now[0]);
      matvec<P, 1>(this->present_of(layer), 2 * r_, r_, work_.now, work_.hidden);
      float* here = this->history(0, layer, ring);
      for (int i = 0; i < r_; i += kWidth) store_any(here + i, load(work_.x[0] + i));
      Activation& out = this->gated(t - joined_, layer);
      float* z = this->z(t - joined_, layer);
      out.storage = reinterpret_cast<uint8_t*>(z);
      gate_all<P>(work_.hidden[0], r_, z, out);
      if (hands_over(layer, d_.layers) || layer + 1 == this->own_) {
        publish(e_->sent, (t - joined_) * d_.layers + layer + 1);
      }
      if (layer + 1 < d_.layers) {
        matvec<P, 1>(this->residual_of(layer), r_, r_, &out, work_.x);
      }
      if (layer == this->own_) skip_so_far(t);
      if (layer >= this->own_) this->add_skip(t - joined_, layer);
    }
    Base::head(this->skip_of(d_.layers - 1) + bytes_of_matrix<P>(d_.skip_channels, r_));
    Base::sample(0, t);
  }

  int64_t term_ = 1;
  int64_t joined_ = 0;  // step of the call at which the term began
  int64_t ahead_ = 0;   // what `ahead` was seen to be
  bool together_ = false;
};

template <Precision P>
class Follower : Half<P> {
  using Half<P>::d_;
  using Half<P>::r_;
  using Half<P>::e_;
  using Half<P>::work_;

 public:
  using Half<P>::Half;

  void run() {
    for (; !reached(e_->quit, clonewave::kNoMoreTerms); ++term_) {
      publish(e_->ahead, 0);
      publish(e_->summed, 0);
      publish(e_->ready, term_);
      if (wait_for(e_->start, 1)) term(__atomic_load_n(&e_->start.value, __ATOMIC_ACQUIRE) - 1);
    }
  }

 private:
  void term(int64_t joined) {
    if (joined < 0) return;  // begun and over before this was read
    sent_ = 0;
    go_to(joined);
    int64_t ring = 0;
    for (int layer = 0; layer < d_.layers; ring += d_.dilations[layer++]) look_back(0, layer, ring);
    for (int64_t t = 0; joined + t < this->steps_; ++t) {
      this->advance();
      if (!step(t, joined + t + 1 == this->steps_)) return;
    }
    wait_for(e_->quit, clonewave::kNoMoreTerms);
  }

  // Where this stream stands: step of the call, which it can have passed in the term before.
  void go_to(int64_t t) {
    const int64_t per_frame = d_.band_steps_per_frame;
    const int64_t in_frame = (first_step_ % per_frame) + t;
    this->local_[0] = this->s_->conditioning + in_frame / per_frame * d_.layers * 2 * r_;
    this->in_frame_[0] = static_cast<int>(in_frame % per_frame);
    *this->s_->step = first_step_ + t;
  }

  bool wait_for(const SharedCount& count, int64_t value) {
    while (!reached(count, value)) {
      if (reached(e_->quit, term_)) return false;
      relax();
    }
    return true;
  }

  // The past of `step`, which is this stream's step now.
  void look_back(int64_t step, int layer, int64_t ring) {
    work_.ahead[0] = this->past(step, layer);
    this->look_ahead(this->past_of(layer), layer, ring);
    if (hands_over(layer, d_.layers)) publish(e_->ahead, step * d_.layers + layer + 1);
    if (layer + 1 < d_.layers && d_.dilations[layer + 1] > 1) {
      prefetch_floats(this->history(0, layer + 1, ring + d_.dilations[layer]), r_);
    }
  }

  // Behind the leader in step t; the stream's step is the one after it.
  bool step(int64_t t, bool last) {
    const uint8_t* w = this->packed_;
    copy(work_.skip[0], take(w, d_.skip_channels), d_.skip_channels);
    int64_t ring = 0;
    for (int layer = 0; layer < d_.layers; ring += d_.dilations[layer++]) {
      const int64_t wanted = t * d_.layers + layer + 1;
      if (sent_ < wanted) {
        if (!wait_for(e_->sent, wanted)) return false;
        sent_ = __atomic_load_n(&e_->sent.value, __ATOMIC_ACQUIRE);
      }
      if (sent_ > wanted) prefetch(this->z(t, layer + 1));
      if (layer < this->own_) this->add_skip(t, layer);
      if (layer + 1 == this->own_) {
        copy(this->skip(t), work_.skip[0], d_.skip_channels);
        publish(e_->summed, t + 1);
      }
      if (!last) look_back(t + 1, layer, ring);
    }
    return true;
  }

  int64_t term_ = 1;
  int64_t sent_ = 0;  // what `sent` was seen to be
  const int64_t first_step_ = *this->s_->step;
};

template <template <Precision> class Role>
void run_half(const WaveNetDims& d, const uint8_t* packed, Precision p, const WaveNetStream* s,
              int64_t steps, Exchange* e) {
  if (p == kF32) Role<kF32>(d, packed, s, steps, e).run();
  if constexpr (kHalves) {
    if (p == kF16) Role<kF16>(d, packed, s, steps, e).run();
  }
  if (p == kBf16) Role<kBf16>(d, packed, s, steps, e).run();
  if (p == kS8) Role<kS8>(d, packed, s, steps, e).run();
}

void lead(const WaveNetDims& d, const uint8_t* packed, Precision p, const WaveNetStream* s,
          int64_t steps, Exchange* e) {
  run_half<Leader>(d, packed, p, s, steps, e);
}

void follow(const WaveNetDims& d, const uint8_t* packed, Precision p, const WaveNetStream* s,
            int64_t steps, Exchange* e) {
  run_half<Follower>(d, packed, p, s, steps, e);
}

}  // namespace
