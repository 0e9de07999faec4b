// Attention of the decoder over its window, and what ends a step. One warp for every utterance.
#pragma once

#include "decoder_block.h"

namespace clonewave {

constexpr float kSqrtHalf = 0.70710678118654752f;

DEVICE float sum_of_warp(float v) {
  for (int mask = kWarp / 2; mask; mask /= 2) v += shuffle_xor(v, mask);
  return v;
}

// Row . this warp's operand column.
template <class Block>
DEVICE float dot_operand(Block& b, const float* row) {
  float sum = 0.0f;
  for (int i = b.at.lane * 4; i < b.p.channels; i += kWarp * 4) {
    sum = dot4(load_global(reinterpret_cast<const Float4*>(row + i)),
               *reinterpret_cast<const Float4*>(b.operand(b.at.warp) + i), sum);
  }
  return sum_of_warp(sum);
}

// x = sqrt(.5) (x + softmax(x . keys[window] + bias) . values[window]); the first attention says
// how far the position moves: to the first of the largest scores.
template <class Block>
DEVICE void attend(Block& b, int attention) {
  const int c = b.at.warp, channels = b.p.channels;
  if (b.has_slot(c)) {
    const DecoderSlot& slot = b.slot(c);
    const auto& column = b.columns()[c];
    const int64_t first = attention * slot.stride + column.position;
    const int left = column.length - column.position;
    const int window = left < b.p.window ? left : b.p.window;
    float score[kMaxWindow], most = -INFINITY, sum = 0.0f;
    int best = 0;
    UNROLL
    for (int w = 0; w < kMaxWindow; ++w) {
      if (w >= window) break;
      score[w] = dot_operand(b, slot.keys + (first + w) * channels) +
                 load_global(slot.key_bias + first + w);
      if (score[w] > most) most = score[w], best = w;
    }
    UNROLL
    for (int w = 0; w < kMaxWindow; ++w) {
      if (w >= window) break;
      sum += score[w] = expf(score[w] - most);
    }
    for (int i = b.at.lane * 4; i < channels; i += kWarp * 4) {
      Float4 context{};
      UNROLL
      for (int w = 0; w < kMaxWindow; ++w) {
        if (w >= window) break;
        const float share = score[w] / sum;
        const float* row = slot.values + (first + w) * channels + i;
        const Float4 v = load_global(reinterpret_cast<const Float4*>(row));
        context.x = fmaf(share, v.x, context.x), context.y = fmaf(share, v.y, context.y);
        context.z = fmaf(share, v.z, context.z), context.w = fmaf(share, v.w, context.w);
      }
      float* x = b.operand(c) + i;
      x[0] = (x[0] + context.x) * kSqrtHalf, x[1] = (x[1] + context.y) * kSqrtHalf;
      x[2] = (x[2] + context.z) * kSqrtHalf, x[3] = (x[3] + context.w) * kSqrtHalf;
    }
    if (attention == 0 && b.at.lane == 0) b.column().move = best;
  }
  sync_threads();
}

// Hidden state out; position, hold and done flag.
template <class Block>
DEVICE void conclude(Block& b, int t) {
  const int c = b.at.warp, channels = b.p.channels;
  if (!b.has_slot(c)) return;
  const DecoderSlot& slot = b.slot(c);
  auto& column = b.columns()[c];
  const bool running = !column.finished, mine = c % b.p.blocks == b.rank;
  const float flag = dot_operand(b, b.done()) + b.p.done_bias;  // all lanes have read `column`
  if (running && mine) {
    for (int i = b.at.lane; i < channels; i += kWarp) {
      slot.hidden[static_cast<int64_t>(t) * channels + i] = b.operand(c)[i];
    }
  }
  if (b.at.lane || !running) return;
  const int last = column.length - 1;
  const bool held = column.elapsed + 1 >= b.p.max_hold;
  int move = column.move;
  if (held && move == 0 && column.position < last) move = 1;
  column.position += move;
  column.elapsed = move > 0 ? 0 : column.elapsed + 1;
  column.count += 1;
  column.move = 0;
  column.finished = (flag > 0 || held) && column.position == last;
  if (mine) slot.path[t] = column.position;
}

}  // namespace clonewave
