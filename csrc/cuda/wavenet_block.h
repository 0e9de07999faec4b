// What one block of the WaveNet ring holds and where; wavenet_ring.h says what it does.
//
// Two forms of one source. Resident (kPer > 0): kPer layers a block; current-tap and residual
// weights in registers, the rest in shared memory; what does not depend on x(t) is done while x is
// with other blocks. Streaming (kPer == 0): weights are read from L2 at every use; any number of
// layers a block, one block alone included.
#pragma once

#include "tiles.h"
#include "wavenet_params.h"

namespace clonewave {

// Sizes and the order of packed weights, shared with the launcher and kernels/cuda_pack.py.
template <class E, int R, int S, int kPer, bool kFold>
struct RingShape {
  static constexpr bool kResident = kPer > 0;
  static constexpr int kGateTiles = R / 8, kResidualTiles = R / 16, kSkipTiles = S / 16;
  static constexpr int kResidualWarps = kResidualTiles < 4 ? kResidualTiles : 4;
  static constexpr int kSkipWarps = kWarps - kResidualWarps;
  static constexpr int kGatesPerWarp = (kGateTiles + kWarps - 1) / kWarps;
  static constexpr int kResidualsPerWarp = kResidualTiles / kResidualWarps;
  static constexpr int kSkipsPerWarp = (kSkipTiles + kSkipWarps - 1) / kSkipWarps;
  // Elements of a layer: past tap, skip | current tap, residual, folded.
  static constexpr int kPast = 0, kSkip = 2 * R * R, kCurrent = kSkip + S * R;
  static constexpr int kResidual = kCurrent + 2 * R * R, kFolded = kResidual + R * R;
  static constexpr int kLayer = kFolded + (kFold ? 2 * R * R : 0);
  // Shared memory of a block in bytes.
  static constexpr int kSize = sizeof(typename E::Stored);
  static constexpr int kRows = kResident ? kPer : 2;  // copies of x kept as float32
  static constexpr int kPastStride = R + 4;
  static constexpr int kBarriers = 0;
  static constexpr int kColumnsAt = 64;
  static constexpr int kOutputsAt = kColumnsAt + 512;
  static constexpr int kInboxAt = kOutputsAt + 2 * kMaxRingBands * kColumns * 4;
  static constexpr int kXAt = kInboxAt + R * kColumns * 4;
  static constexpr int kOperand = E::stride(R) * kColumns * kSize;
  static constexpr int kZAt = kXAt + 2 * kOperand;
  static constexpr int kKeptAt = kZAt + 2 * kOperand;
  static constexpr int kPastAt = kKeptAt + kRows * kColumns * R * 4;
  static constexpr int kBeforeAt = kPastAt + kPer * kColumns * kPastStride * 4;
  static constexpr int kHeadAt = kBeforeAt + kPer * kGateTiles * kWarp * 16;
  static constexpr int kHeadOperand = E::stride(S) * kColumns * kSize;
  static constexpr int kWeightsAt = kHeadAt + 2 * kHeadOperand;

  static HOST_DEVICE constexpr int head_elements(int output_tiles) {
    return S * S + output_tiles * 16 * S;
  }
  static HOST_DEVICE constexpr int resident_bytes(int layers) {
    return kResident ? layers * kCurrent * kSize : 0;
  }
  // Of the block that owns `layers` layers; the last one also holds the head.
  static constexpr int shared_bytes(int layers, int blocks, int output_tiles, int codes,
                                    bool last) {
    int bytes = kWeightsAt + resident_bytes(layers);
    if (!last) return bytes;
    if (kResident) bytes += head_elements(output_tiles) * kSize;
    return bytes + (blocks - 1) * S * kColumns * 4 + (codes + 4) * kColumns * 4;
  }
};

template <class E, int R, int S, int kPer, bool kCluster, bool kFold>
struct RingBlock {
  using Shape = RingShape<E, R, S, kPer, kFold>;
  using Element = E;
  using Stored = typename E::Stored;
  using Part = typename E::Part;
  static constexpr bool kResident = Shape::kResident;
  static constexpr int kBlocks = R / E::kDepth;  // weight blocks of a tile with depth R
  static constexpr int kStride = E::stride(R), kHeadStride = E::stride(S);
  static constexpr int kHeld = kResident ? kPer : 1;

  // A column of the group: its slot and where it stands. Lives in shared memory.
  struct Column {
    const float* conditioning;
    float* history;
    int64_t step;
    int steps, begin;
    int lasts;  // steps that the conditioning lasts for, at most `steps`
  };
  static_assert(sizeof(Column) * kColumns <= 512, "columns");

  static constexpr bool kInCluster = kCluster, kFolds = kFold;
  static constexpr int kResidualChannels = R, kSkipChannels = S;

  const WaveNetParams& p;
  const Lane at;
  const int group, rank, blocks;
  const int first, count;  // layers of this block
  unsigned char* const shared;
  const Stored* const weights;  // of this block's first layer, in global memory
  int steps;                    // of the longest column

  // Held in registers.
  Part current[kHeld][Shape::kGatesPerWarp][kResident ? kBlocks : 1];
  Part residual[kHeld][Shape::kResidualsPerWarp][kResident ? kBlocks : 1];
  Part folded[kHeld][Shape::kGatesPerWarp][kResident && kFold ? kBlocks : 1];
  float x[Shape::kResidualsPerWarp][4];    // residual stream, warps that own residual tiles
  float skip[Shape::kSkipsPerWarp][4];     // skip sum of this block, the other warps
  float newest[2];                         // outputs of the step before, sampling lanes

  explicit DEVICE RingBlock(const WaveNetParams& params)
      : p(params), group(group_index<kCluster>()), rank(block_rank<kCluster>()),
        blocks(params.blocks), first(rank * params.layers_per_block), count(layers_of(rank)),
        shared(shared_memory()),
        weights(static_cast<const Stored*>(params.weights) +
                static_cast<int64_t>(first) * Shape::kLayer) {}

  DEVICE int layers_of(int block) const {
    const int left = p.layers - block * p.layers_per_block;
    return left < 0 ? 0 : left < p.layers_per_block ? left : p.layers_per_block;
  }
  DEVICE bool last() const { return rank == blocks - 1; }
  DEVICE bool owns_residual() const { return at.warp < Shape::kResidualWarps; }
  DEVICE int residual_tile(int i) const { return at.warp + i * Shape::kResidualWarps; }
  DEVICE int skip_tile(int i) const {
    return at.warp - Shape::kResidualWarps + i * Shape::kSkipWarps;
  }
  DEVICE const WaveNetSlot& slot(int column) const { return p.slots[group * kColumns + column]; }
  template <class T>
  DEVICE T* in_shared(int bytes) const { return reinterpret_cast<T*>(shared + bytes); }
  DEVICE uint64_t* barrier(int i) const { return in_shared<uint64_t>(Shape::kBarriers) + i; }
  DEVICE int x_message() const { return R * kColumns * 4; }
  DEVICE int y_message() const { return p.bands * kColumns * 4; }
  DEVICE int skip_message() const { return (blocks - 1) * S * kColumns * 4; }
  DEVICE uint64_t* x_barrier() const { return barrier(0); }
  DEVICE uint64_t* y_barrier() const { return barrier(1); }
  DEVICE uint64_t* skip_barrier() const { return barrier(2); }
  DEVICE Column* columns() const { return in_shared<Column>(Shape::kColumnsAt); }
  // [2][bands][columns]: y(t) at t % 2
  DEVICE float* outputs(int t) const {
    return in_shared<float>(Shape::kOutputsAt) + (t & 1) * kMaxRingBands * kColumns;
  }
  DEVICE Float4* inbox() const { return in_shared<Float4>(Shape::kInboxAt); }
  DEVICE Stored* x_operand(int i) const {
    return in_shared<Stored>(Shape::kXAt + (i & 1) * Shape::kOperand);
  }
  DEVICE Stored* z_operand(int i) const {
    return in_shared<Stored>(Shape::kZAt + (i & 1) * Shape::kOperand);
  }
  DEVICE float* kept(int l) const {  // x of layer l, [column][R]
    return in_shared<float>(Shape::kKeptAt) + (kResident ? l : l & 1) * kColumns * R;
  }
  DEVICE float* past(int l) const {  // x[t + 1 - dilation] of layer l, [column][kPastStride]
    return in_shared<float>(Shape::kPastAt) + l * kColumns * Shape::kPastStride;
  }
  DEVICE Float4* before(int l, int tile) const {  // what is known of a gate before x, per lane
    return in_shared<Float4>(Shape::kBeforeAt) + (l * Shape::kGateTiles + tile) * kWarp + at.lane;
  }
  DEVICE Stored* head_operand(int i) const {
    return in_shared<Stored>(Shape::kHeadAt + i * Shape::kHeadOperand);
  }
  // In the last block, after the weights of its layers: head weights, skip inboxes, logits.
  DEVICE int head_at() const {
    return Shape::kWeightsAt + Shape::resident_bytes(layers_of(blocks - 1));
  }
  DEVICE const Stored* head_weights() const {
    if (kResident) return in_shared<Stored>(head_at());
    return static_cast<const Stored*>(p.weights) + static_cast<int64_t>(p.layers) * Shape::kLayer;
  }
  DEVICE int skips_at() const {
    return head_at() + (kResident ? Shape::head_elements(p.output_tiles) * Shape::kSize : 0);
  }
  DEVICE Float4* skips(int from) const {  // of block `from`, [tile][lane]
    return in_shared<Float4>(skips_at()) + from * S * kColumns / 4;
  }
  DEVICE float* logits() const {  // [column][codes + 4]
    return in_shared<float>(skips_at() + (blocks - 1) * S * kColumns * 4);
  }
  DEVICE const Stored* global_weights(int l) const {
    return weights + static_cast<int64_t>(l) * Shape::kLayer;
  }
  // Past-tap and skip weights, which a resident block keeps in shared memory.
  DEVICE const Stored* outer_weights(int l) const {
    if (kResident) return in_shared<Stored>(Shape::kWeightsAt) + l * Shape::kCurrent;
    return global_weights(l);
  }
  DEVICE const float* skip_bias() const { return p.floats + R * p.bands * 2; }
};

}  // namespace clonewave
