// What one block of the decoder holds and where; decoder_cluster.h says what it does.
#pragma once

#include "decoder_params.h"
#include "tiles.h"

namespace clonewave {

// The shared memory of a block, in bytes: barriers, columns, operand, two inboxes, past sums,
// weights.
constexpr int kDecoderColumnsAt = 64;
constexpr int kDecoderOperandAt = 512;

template <class E, bool kCluster>
struct DecoderBlock {
  using Element = E;
  using Stored = typename E::Stored;
  static constexpr bool kInCluster = kCluster;

  // Where an utterance stands; every block keeps and computes the same.
  struct Column {
    int position, elapsed, length, count;
    int finished, move, done;
  };
  static_assert(sizeof(Column) * kColumns <= kDecoderOperandAt - kDecoderColumnsAt, "columns");

  const DecoderParams& p;
  const Lane at;
  const int group, rank;
  unsigned char* const shared;
  int exchanges = 0;  // made so far

  explicit DEVICE DecoderBlock(const DecoderParams& params)
      : p(params), group(group_index<kCluster>()), rank(block_rank<kCluster>()),
        shared(shared_memory()) {}

  DEVICE uint64_t* barrier(int exchange) const {
    return reinterpret_cast<uint64_t*>(shared) + (exchange & 1);
  }
  DEVICE Column* columns() const { return reinterpret_cast<Column*>(shared + kDecoderColumnsAt); }
  DEVICE Column& column() const { return columns()[at.warp]; }  // a warp for every column
  DEVICE bool has_slot(int c) const { return group * kColumns + c < p.count; }
  DEVICE const DecoderSlot& slot(int c) const { return p.slots[group * kColumns + c]; }
  DEVICE float* operand(int c) const {  // input of the next product, [column][operand_stride]
    return reinterpret_cast<float*>(shared + kDecoderOperandAt) + c * p.operand_stride;
  }
  DEVICE float* inbox(int exchange) const {
    return operand(kColumns) + (exchange & 1) * p.inbox_floats;
  }
  // Bias and past taps of a layer's gates, [layer][tile of this block][lane].
  DEVICE Float4* past_sum(int layer, int local) const {
    const int tiles = (p.channels / 8 + p.blocks - 1) / p.blocks;
    Float4* first = reinterpret_cast<Float4*>(shared + p.past_at);
    return first + (layer * tiles + local) * kWarp + at.lane;
  }
  DEVICE float* history(int layer, int slot, int c) const {  // this block's own copy
    const int64_t rows = p.kernel_size - 1;
    const int64_t block = static_cast<int64_t>(group) * p.blocks + rank;
    return p.scratch + (((block * p.layers + layer) * rows + slot) * kColumns + c) * p.channels;
  }
  DEVICE const float* conv_bias(int layer) const { return p.floats + layer * 2 * p.channels; }
  DEVICE const float* mel_bias() const { return conv_bias(p.layers); }
  DEVICE const float* done() const { return mel_bias() + p.mel; }
  DEVICE const float* elapsed_rows() const { return done() + p.channels; }
  // Tiles are dealt to the blocks of the cluster, and a block's tiles to its warps.
  DEVICE int tile_of(int local) const { return local * p.blocks + rank; }
};

// acc += tile * operand columns; the tile's weights from shared memory or L2.
template <class Block, class Columns>
DEVICE void multiply_tile(Block& b, float (&acc)[4], const DecoderMatrix& m, int64_t skip,
                          int local, Columns columns) {
  const int64_t size = static_cast<int64_t>(16) * m.depth;
  const auto* from = static_cast<const typename Block::Stored*>(b.p.weights) + m.offset + skip +
                     b.tile_of(local) * size;
  const bool global = m.shared < 0;
  if (!global) {
    from = reinterpret_cast<const typename Block::Stored*>(b.shared + m.shared) + local * size;
  }
  multiply(typename Block::Element{}, acc, m.depth, b.at,
           [&](int block) { return part_of(from, block, b.at, global); }, columns);
}

}  // namespace clonewave
