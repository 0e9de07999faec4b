// The end of a step, in the last block of the WaveNet ring: skip sum, two products, the sample.
#pragma once

#include "noise.h"
#include "wavenet_block.h"

namespace clonewave {

template <class Ring>
DEVICE float randomness_at(Ring& r, int c, int band, int t) {
  if (t >= r.columns()[c].steps) return 0.0f;
  const WaveNetSlot& slot = r.slot(c);
  if (slot.randomness) return load_global(slot.randomness + band * slot.stride + t);
  const uint64_t step = static_cast<uint64_t>(r.columns()[c].step + t);
  return gaussian_at(slot.seed, slot.stream, step, band);
}

// Writes the output, and at the end of a column what the next launch needs of it. `fed` is what
// goes back into the network; returns it, or NaN where the conditioning has ended.
template <class Ring>
DEVICE float emit(Ring& r, int c, int band, int t, float value, float fed, float& newest) {
  const int steps = r.columns()[c].steps;
  if (t >= r.columns()[c].lasts) value = fed = NAN;  // seen at once, and no wait for a check
  if (t < steps) {
    const WaveNetSlot& slot = r.slot(c);
    slot.out[band * slot.stride + t] = value;
    if (t == steps - 1) {
      slot.last[2 * band] = newest;
      slot.last[2 * band + 1] = fed;
    }
  }
  newest = fed;
  return fed;
}

// relu(skip + bias), the head's first operand: the other blocks' shares in order, then our own.
template <class Ring>
DEVICE void gather_skips(Ring& r, int t) {
  using Shape = typename Ring::Shape;
  if (r.owns_residual()) return;
  if (r.blocks > 1) {
    mbarrier_wait(r.skip_barrier(), t);
    if (r.at.warp == Shape::kResidualWarps && r.at.lane == 0 && t + 1 < r.steps) {
      mbarrier_expect(r.skip_barrier(), r.skip_message());
    }
  }
  UNROLL
  for (int i = 0; i < Shape::kSkipsPerWarp; ++i) {
    const int tile = r.skip_tile(i);
    if (tile >= Shape::kSkipTiles) continue;
    const float* bias = r.skip_bias() + 16 * tile + r.at.row;
    const float upper = load_global(bias), lower = load_global(bias + 8);
    float sum[4] = {upper, upper, lower, lower};
    for (int block = 0; block < r.blocks - 1; ++block) {
      const Float4 share = r.skips(block)[tile * kWarp + r.at.lane];
      sum[0] += share.x, sum[1] += share.y, sum[2] += share.z, sum[3] += share.w;
    }
    UNROLL
    for (int j = 0; j < 4; ++j) {
      sum[j] = relu(sum[j] + r.skip[i][j]);
      r.skip[i][j] = 0.0f;
    }
    store_tile<typename Ring::Element>(r.head_operand(0), Ring::kHeadStride, 16 * tile, r.at, sum);
  }
}

// One tile of a head product: bias + W operand, depth S.
template <class Ring>
DEVICE void head_tile(Ring& r, float (&acc)[4], const typename Ring::Stored* from,
                      const float* bias, const typename Ring::Stored* operand, int tile) {
  constexpr int S = Ring::kSkipChannels;
  const float upper = load_global(bias + 16 * tile + r.at.row);
  const float lower = load_global(bias + 16 * tile + 8 + r.at.row);
  acc[0] = acc[1] = upper, acc[2] = acc[3] = lower;
  const auto* packed = from + tile * 16 * S;
  multiply(typename Ring::Element{}, acc, S, r.at,
           [&](int block) { return part_of(packed, block, r.at, !Ring::kResident); },
           [&](int c) { return operand + c * Ring::kHeadStride; });
}

// To block 0, unless this was the last step.
template <class Ring>
DEVICE void feed_back(Ring& r, int band, int t, int column, const float* y, int n) {
  float* to = r.outputs(t) + band * kColumns + column;
  if constexpr (Ring::kInCluster) {
    if (t + 1 == r.steps) return;
    const uint32_t there = remote_address(to, 0), barrier = remote_address(r.y_barrier(), 0);
    if (n == 2) send(there, y[0], y[1], barrier);
    else send(there, y[0], barrier);
  } else {
    for (int i = 0; i < n; ++i) to[i] = y[i];
  }
}

// Rows 0-7 of the output tile are means, 8-15 log-scales: a lane has both of its band.
template <class Ring>
DEVICE void sample_gaussian(Ring& r, int t, const float (&acc)[4], const float (&noise)[2]) {
  if (r.at.row >= r.p.bands) return;
  float y[2];
  UNROLL
  for (int i = 0; i < 2; ++i) {
    y[i] = acc[i] + expf(acc[2 + i]) * noise[i];
    y[i] = emit(r, r.at.column(i), r.at.row, t, y[i], y[i], r.newest[i]);
  }
  feed_back(r, r.at.row, t, r.at.column(0), y, 2);
}

// y = first k with cumsum(softmax(logits))[k] > uniform. A warp for every column, codes / 32
// consecutive codes a lane.
template <class Ring>
DEVICE void sample_softmax(Ring& r, int t, float uniform) {
  const int c = r.at.warp, each = r.p.codes / kWarp;
  float* logit = r.logits() + c * (r.p.codes + 4) + r.at.lane * each;
  float most = logit[0];
  for (int i = 1; i < each; ++i) most = fmaxf(most, logit[i]);
  for (int mask = kWarp / 2; mask; mask /= 2) most = fmaxf(most, shuffle_xor(most, mask));
  float sum = 0.0f;
  for (int i = 0; i < each; ++i) sum += logit[i] = expf(logit[i] - most);
  float through = sum;  // of this and all lanes before
  for (int by = 1; by < kWarp; by *= 2) {
    const float other = shuffle_up(through, by);
    if (r.at.lane >= by) through += other;
  }
  const float threshold = uniform * shuffle_from(through, kWarp - 1);
  float found = static_cast<float>(r.p.codes - 1);  // rounding must not leave a draw without a code
  float before = through - sum;
  for (int i = 0; i < each; ++i) {
    before += logit[i];
    if (before > threshold) {
      found = fminf(found, static_cast<float>(r.at.lane * each + i));
      break;
    }
  }
  for (int mask = kWarp / 2; mask; mask /= 2) found = fminf(found, shuffle_xor(found, mask));
  if (r.at.lane) return;
  float fed = 2.0f * found / static_cast<float>(r.p.codes - 1) - 1.0f;
  fed = emit(r, c, 0, t, found, fed, r.newest[0]);
  feed_back(r, 0, t, c, &fed, 1);
}

// Everything from the skip sum to the samples of step t.
template <class Ring>
DEVICE void head(Ring& r, int t) {
  constexpr int S = Ring::kSkipChannels;
  float noise[2] = {};
  if (r.p.codes) {
    noise[0] = randomness_at(r, r.at.warp, 0, t);
  } else if (r.at.warp == 0 && r.at.row < r.p.bands) {
    UNROLL
    for (int i = 0; i < 2; ++i) noise[i] = randomness_at(r, r.at.column(i), r.at.row, t);
  }
  gather_skips(r, t);
  sync_threads();
  float acc[4];
  for (int tile = r.at.warp; tile < S / 16; tile += kWarps) {
    head_tile(r, acc, r.head_weights(), r.skip_bias() + S, r.head_operand(0), tile);
    UNROLL
    for (int i = 0; i < 4; ++i) acc[i] = relu(acc[i]);
    store_tile<typename Ring::Element>(r.head_operand(1), Ring::kHeadStride, 16 * tile, r.at, acc);
  }
  sync_threads();
  for (int tile = r.at.warp; tile < r.p.output_tiles; tile += kWarps) {
    head_tile(r, acc, r.head_weights() + S * S, r.skip_bias() + 2 * S, r.head_operand(1), tile);
    if (r.p.codes) store_tile<Float32>(r.logits(), r.p.codes + 4, 16 * tile, r.at, acc);
    else sample_gaussian(r, t, acc, noise);
  }
  if (r.p.codes) {
    sync_threads();
    sample_softmax(r, t, noise[0]);
  }
}

}  // namespace clonewave
