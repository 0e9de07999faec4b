// Deep Voice 3's attention decoder, free-running, for groups of eight utterances. A cluster of
// blocks shares a group: the rows of every matrix are dealt to the blocks tile by tile, and after
// each product every block sends its results to all (st.async, counted by the receiver's mbarrier).
//
//   prenet ... -> enter -> layers, attention after some -> mel -> the next step's prenet
//
// Attention, position, done flag and counters are computed in every block alike. What the past taps
// of the convolutions add is summed for the next step when a step has ended.
//
// Two inboxes take turns. Exchange e + 2 lands where e did: a block sends it when it has e + 1 of
// all blocks, and each of those was sent after its sender had unpacked e. So every block must own a
// tile of every matrix; the launcher picks the number of blocks so.
#pragma once

#include "decoder_attention.h"
#include "decoder_block.h"

namespace clonewave {

// Announces the bytes of exchange `e`: the rows of the product that it carries.
template <class Block>
DEVICE void announce(Block& b, int e) {
  const DecoderMatrix& m = b.p.matrix[e % b.p.matrices];
  const bool gated = e % b.p.matrices > b.p.prenet_layers && e % b.p.matrices < b.p.matrices - 1;
  mbarrier_expect(b.barrier(e), (gated ? m.rows / 2 : m.rows) * kColumns * 4);
}

// A lane's results to the inbox of every block, [tile][lane][values].
template <class Block>
DEVICE void give(Block& b, int tile, const float (&v)[4], bool gated) {
  const int values = gated ? 2 : 4;
  float* to = b.inbox(b.exchanges) + (tile * kWarp + b.at.lane) * values;
  if constexpr (Block::kInCluster) {
    for (int i = 0; i < b.p.blocks; ++i) {
      const int block = (b.rank + i) % b.p.blocks;  // not all to one at a time
      const uint32_t there = remote_address(to, block);
      const uint32_t barrier = remote_address(b.barrier(b.exchanges), block);
      if (gated) send(there, v[0], v[1], barrier);
      else send(there, Float4{v[0], v[1], v[2], v[3]}, barrier);
    }
  } else {
    for (int i = 0; i < values; ++i) to[i] = v[i];
  }
}

// Waits for all results of the product and lays them out as the next operand.
template <class Block>
DEVICE void take(Block& b, int rows, bool gated) {
  sync_threads();  // the operand of before has been read; overlaps with the way of the results
  if constexpr (Block::kInCluster) {
    mbarrier_wait(b.barrier(b.exchanges), b.exchanges / 2);
    const int last = b.p.matrices * b.p.steps;
    if (thread_index() == 0 && b.exchanges + 2 < last) announce(b, b.exchanges + 2);
  }
  const float* from = b.inbox(b.exchanges);
  const int values = gated ? 2 : 4;
  for (int i = thread_index(); i < rows * kColumns; i += kThreads) {
    const int lane = i / values % kWarp, value = i % values;
    const int row = i / (values * kWarp) * (gated ? 8 : 16) + lane / 4 + value / 2 * 8;
    b.operand(lane % 4 * 2 + value % 2)[row] = from[i];
  }
  ++b.exchanges;
  sync_threads();
}

// One product: own tiles, each begun and finished by the caller, and the exchange of the results.
template <class Block, class Begin, class Finish>
DEVICE void product(Block& b, int index, bool gated, Begin begin, Finish finish) {
  const DecoderMatrix& m = b.p.matrix[index];
  for (int local = b.at.warp; b.tile_of(local) < m.rows / 16; local += kWarps) {
    float acc[4] = {};
    begin(local, acc);
    multiply_tile(b, acc, m, 0, local, [&](int c) { return b.operand(c); });
    finish(b.tile_of(local), acc);
    give(b, b.tile_of(local), acc, gated);
  }
  take(b, gated ? m.rows / 2 : m.rows, gated);
}

struct FromZero {
  DEVICE void operator()(int, float (&)[4]) const {}
};

template <class Block>
DEVICE void prenet(Block& b) {
  for (int i = 0; i < b.p.prenet_layers; ++i) {
    product(b, i, false, FromZero{}, [&](int tile, float (&acc)[4]) {
      UNROLL
      for (int j = 0; j < 4; ++j) {
        const int row = 16 * tile + b.at.row + j / 2 * 8, c = b.at.column(j % 2);
        const float bias = b.has_slot(c) ? load_global(b.slot(c).prenet_bias[i] + row) : 0.0f;
        acc[j] = relu(acc[j] + bias);
      }
    });
  }
  const int channels = b.p.channels;
  product(b, b.p.prenet_layers, false, FromZero{}, [&](int tile, float (&acc)[4]) {
    UNROLL
    for (int j = 0; j < 4; ++j) {
      const int row = 16 * tile + b.at.row + j / 2 * 8, c = b.at.column(j % 2);
      if (!b.has_slot(c)) continue;
      const auto& column = b.columns()[c];
      const int held = column.elapsed < b.p.elapsed_rows ? column.elapsed : b.p.elapsed_rows - 1;
      acc[j] += load_global(b.slot(c).attended + static_cast<int64_t>(column.position) * channels +
                            row);
      acc[j] += load_global(b.elapsed_rows() + held * channels + row);
    }
  });
}

// x = sqrt(.5) (x + (value + speaker) sigmoid(gate)); x goes into the history as it comes in.
template <class Block>
DEVICE void convolve(Block& b, int layer, int t) {
  const int channels = b.p.channels, past = b.p.kernel_size - 1;
  if (past) {
    for (int i = thread_index(); i < kColumns * channels; i += kThreads) {
      const int c = i / channels, channel = i % channels;
      b.history(layer, t % past, c)[channel] = b.operand(c)[channel];
    }
  }
  product(
      b, b.p.prenet_layers + 1 + layer, true,
      [&](int local, float (&acc)[4]) {
        const Float4 known = *b.past_sum(layer, local);
        acc[0] = known.x, acc[1] = known.y, acc[2] = known.z, acc[3] = known.w;
      },
      [&](int tile, float (&acc)[4]) {
        const int channel = 8 * tile + b.at.row;
        UNROLL
        for (int i = 0; i < 2; ++i) {
          const int c = b.at.column(i);
          const float speaker =
              b.has_slot(c) ? load_global(b.slot(c).speaker + layer * channels + channel) : 0.0f;
          const float gated = (acc[i] + speaker) * Block::Element::sigmoid(acc[2 + i]);
          acc[i] = (b.operand(c)[channel] + gated) * kSqrtHalf;
        }
      });
}

// For step t: bias and past taps of every gate of this block, oldest tap first.
template <class Block>
DEVICE void sum_past(Block& b, int t) {
  const int gates = b.p.channels / 8, past = b.p.kernel_size - 1;
  const int each = (gates - b.rank + b.p.blocks - 1) / b.p.blocks;
  for (int i = b.at.warp; i < b.p.layers * each; i += kWarps) {
    const int layer = i / each, local = i % each;
    const DecoderMatrix& m = b.p.past[layer];
    const float* bias = b.conv_bias(layer) + 16 * b.tile_of(local) + b.at.row;
    float acc[4];
    acc[0] = acc[1] = load_global(bias);
    acc[2] = acc[3] = load_global(bias + 8);
    for (int tap = 0; tap < past; ++tap) {
      const float* columns = b.history(layer, (t + tap) % past, 0);
      multiply_tile(b, acc, m, static_cast<int64_t>(tap) * m.rows * m.depth, local,
                    [&](int c) { return columns + c * b.p.channels; });
    }
    *b.past_sum(layer, local) = {acc[0], acc[1], acc[2], acc[3]};
  }
  sync_threads();
}

// Weights that fit, state, and the sums of the past for the first step.
template <class Block>
DEVICE void begin(Block& b) {
  const DecoderParams& p = b.p;
  const int past = p.kernel_size - 1;
  for (int i = 0; i < p.matrices; ++i) {
    const DecoderMatrix& m = p.matrix[i];
    if (m.shared < 0) continue;
    const int bytes = 16 * m.depth * static_cast<int>(sizeof(typename Block::Stored));
    const auto* from = static_cast<const unsigned char*>(p.weights) +
                       m.offset * static_cast<int64_t>(sizeof(typename Block::Stored));
    for (int local = 0; b.tile_of(local) < m.rows / 16; ++local) {
      for (int j = 16 * thread_index(); j < bytes; j += 16 * kThreads) {
        copy_async(b.shared + m.shared + local * bytes + j,
                   from + static_cast<int64_t>(b.tile_of(local)) * bytes + j);
      }
    }
  }
  for (int i = thread_index(); i < kColumns * p.operand_stride; i += kThreads) b.operand(0)[i] = 0;
  if (thread_index() < kColumns) {
    const int c = thread_index();
    typename Block::Column column{0, 0, 1, 0, 1, 0, 0};
    if (b.has_slot(c)) {
      const DecoderSlot& slot = b.slot(c);
      column = {static_cast<int>(*slot.position), static_cast<int>(*slot.elapsed),
                static_cast<int>(*slot.length), 0, *slot.finished, 0, 0};
    }
    b.columns()[c] = column;
  }
  sync_threads();
  for (int i = thread_index(); i < kColumns * p.mel; i += kThreads) {
    const int c = i / p.mel;
    if (b.has_slot(c)) b.operand(c)[i % p.mel] = b.slot(c).mel[i % p.mel];
  }
  for (int i = thread_index(); i < p.layers * kColumns * p.channels; i += kThreads) {
    const int layer = i / (kColumns * p.channels), c = i / p.channels % kColumns;
    const int channel = i % p.channels;
    for (int j = 0; j < past; ++j) {
      b.history(layer, j, c)[channel] =
          b.has_slot(c) ? b.slot(c).history[(layer * p.channels + channel) * past + j] : 0.0f;
    }
  }
  if constexpr (Block::kInCluster) {
    if (thread_index() == 0) {
      for (int i = 0; i < 2; ++i) mbarrier_init(b.barrier(i), 1);
      mbarrier_init_fence();
      for (int i = 0; i < 2; ++i) announce(b, i);
    }
  }
  copy_wait();
  sync_threads();
  sum_past(b, 0);
  if constexpr (Block::kInCluster) cluster_sync();
}

// State of a launch of t steps back to where it came from; outputs beyond an utterance's end.
template <class Block>
DEVICE void end(Block& b, int t) {
  const DecoderParams& p = b.p;
  const int past = p.kernel_size - 1;
  if constexpr (Block::kInCluster) cluster_sync();  // nobody leaves while others may still send
  for (int c = b.rank; c < kColumns; c += p.blocks) {
    if (!b.has_slot(c)) continue;
    const DecoderSlot& slot = b.slot(c);
    const auto& column = b.columns()[c];
    for (int i = thread_index(); i < p.mel; i += kThreads) slot.mel[i] = b.operand(c)[i];
    for (int i = thread_index(); i < p.layers * p.channels; i += kThreads) {
      const int layer = i / p.channels, channel = i % p.channels;
      for (int j = 0; j < past; ++j) {
        slot.history[i * past + j] = b.history(layer, (t + j) % past, c)[channel];
      }
    }
    const int64_t made = static_cast<int64_t>(column.count) * p.channels;
    for (int64_t i = made + thread_index(); i < static_cast<int64_t>(p.steps) * p.channels;
         i += kThreads) {
      slot.hidden[i] = 0.0f;
    }
    for (int i = column.count + thread_index(); i < p.steps; i += kThreads) {
      slot.path[i] = column.position;
    }
    if (thread_index() == 0) {
      *slot.position = column.position;
      *slot.elapsed = column.elapsed;
      *slot.finished = column.finished;
      *slot.count = column.count;
    }
  }
}

template <class Block>
DEVICE bool all_finished(Block& b) {
  bool all = true;
  for (int c = 0; c < kColumns; ++c) all = all && b.columns()[c].finished;
  return all;
}

template <class Block>
DEVICE void decoder_cluster(const DecoderParams& params) {
  Block b(params);
  begin(b);
  int t = 0;
  for (; t < params.steps && !all_finished(b); ++t) {
    prenet(b);
    for (int layer = 0; layer < params.layers; ++layer) {
      convolve(b, layer, t);
      if (params.attention_of[layer] >= 0) attend(b, params.attention_of[layer]);
    }
    conclude(b, t);
    product(b, params.matrices - 1, false, FromZero{}, [&](int tile, float (&acc)[4]) {
      const float* bias = b.mel_bias() + 16 * tile + b.at.row;
      UNROLL
      for (int j = 0; j < 4; ++j) acc[j] += load_global(bias + j / 2 * 8);
    });
    sum_past(b, t + 1);
  }
  end(b, t);
}

}  // namespace clonewave
