// Autoregressive WaveNet for groups of eight streams. A group runs on a ring of blocks in one
// thread-block cluster: block c owns consecutive layers, the last also the head and the sampler.
//
//   block 0: x = W_in y  ->  layers  ->  x to block 1 ... ->  last block: head, y to block 0
//   every block: its share of the skip sum straight to the last block
//
// Data travel by st.async into the receiver's shared memory and count towards its mbarrier, so one
// wait both orders and synchronises. Every inbox holds one message: x(t + 1) is sent only after
// y(t) came round, and y(t) needs all that was made of x(t), so the inbox is free by then. Without
// a cluster one block is the whole ring.
#pragma once

#include "wavenet_head.h"
#include "wavenet_layers.h"

namespace clonewave {

// Weights into registers and shared memory.
template <class Ring>
DEVICE void load_weights(Ring& r) {
  using Shape = typename Ring::Shape;
  constexpr int R = Ring::kResidualChannels, kPerCopy = 16 / Shape::kSize;
  if constexpr (Ring::kResident) {
    using Stored = typename Ring::Stored;
    Stored* to = r.template in_shared<Stored>(Shape::kWeightsAt);
    for (int l = 0; l < r.count; ++l, to += Shape::kCurrent) {
      for (int i = thread_index() * kPerCopy; i < Shape::kCurrent; i += kThreads * kPerCopy) {
        copy_async(to + i, r.global_weights(l) + i);
      }
    }
    if (r.last()) {
      const Stored* from = static_cast<const Stored*>(r.p.weights) + r.p.layers * Shape::kLayer;
      const int size = Shape::head_elements(r.p.output_tiles);
      for (int i = thread_index() * kPerCopy; i < size; i += kThreads * kPerCopy) {
        copy_async(to + i, from + i);
      }
    }
    UNROLL
    for (int l = 0; l < Ring::kHeld; ++l) {
      if (l >= r.count) continue;
      UNROLL
      for (int block = 0; block < Ring::kBlocks; ++block) {
        UNROLL
        for (int i = 0; i < Shape::kGatesPerWarp; ++i) {
          const int tile = r.at.warp + i * kWarps;
          if (tile >= Shape::kGateTiles) continue;
          const Stored* from = r.global_weights(l) + tile * 16 * R;
          r.current[l][i][block] = part_of(from + Shape::kCurrent, block, r.at, true);
          if constexpr (Ring::kFolds) {
            r.folded[l][i][block] = part_of(from + Shape::kFolded, block, r.at, true);
          }
        }
        UNROLL
        for (int i = 0; i < Shape::kResidualsPerWarp; ++i) {
          if (!r.owns_residual()) continue;
          const Stored* from = r.global_weights(l) + Shape::kResidual;
          r.residual[l][i][block] = part_of(from + r.residual_tile(i) * 16 * R, block, r.at, true);
        }
      }
    }
    copy_wait();
  }
}

// What the slots say, as every thread of the block needs it; the columns' steps of before.
template <class Ring>
DEVICE void load_columns(Ring& r) {
  const int c = thread_index();
  if (c < kColumns) {
    typename Ring::Column column{};
    if (r.group * kColumns + c < r.p.count) {
      const WaveNetSlot& slot = r.slot(c);
      const int begin = static_cast<int>(*slot.step % r.p.steps_per_frame);
      const int64_t known = slot.frames * r.p.steps_per_frame - begin;
      column = {slot.conditioning, slot.history, *slot.step, slot.steps, begin,
                known < slot.steps ? static_cast<int>(known) : slot.steps};
    }
    r.columns()[c] = column;
    for (int band = 0; band < r.p.bands; ++band) {
      UNROLL
      for (int i = 0; i < 2; ++i) {
        r.outputs(i)[band * kColumns + c] = column.steps ? r.slot(c).last[2 * band + i] : 0.0f;
      }
    }
  }
  sync_threads();
  r.steps = 0;
  for (int i = 0; i < kColumns; ++i) {
    if (r.columns()[i].steps > r.steps) r.steps = r.columns()[i].steps;
  }
  const int band = r.p.codes ? 0 : r.at.row < r.p.bands ? r.at.row : 0;
  UNROLL
  for (int i = 0; i < 2; ++i) {
    r.newest[i] = r.outputs(1)[band * kColumns + (r.p.codes ? r.at.warp : r.at.column(i))];
  }
}

// Exactly one thread announces the bytes of each phase of each barrier.
template <class Ring>
DEVICE void open_barriers(Ring& r) {
  if (thread_index() == 0) {
    for (int i = 0; i < 3; ++i) mbarrier_init(r.barrier(i), 1);
    mbarrier_init_fence();
    if (r.rank > 0 && r.steps > 0) mbarrier_expect(r.x_barrier(), r.x_message());
    if (r.rank == 0 && r.steps > 1) mbarrier_expect(r.y_barrier(), r.y_message());
    if (r.last() && r.steps > 0) mbarrier_expect(r.skip_barrier(), r.skip_message());
  }
}

template <class Ring>
DEVICE void start(Ring& r) {
  load_columns(r);
  load_weights(r);
  if constexpr (Ring::kInCluster) open_barriers(r);
  UNROLL
  for (int i = 0; i < Ring::Shape::kSkipsPerWarp; ++i) {
    UNROLL
    for (int j = 0; j < 4; ++j) r.skip[i][j] = 0.0f;
  }
  prepare(r, 0);
  if constexpr (Ring::kInCluster) cluster_sync();
}

// Block 0: x = W_in [y[t - 2]; y[t - 1]].
template <class Ring>
DEVICE void enter(Ring& r, int t) {
  UNROLL
  for (int i = 0; i < Ring::Shape::kResidualsPerWarp; ++i) {
    UNROLL
    for (int j = 0; j < 4; ++j) {
      const int row = 16 * r.residual_tile(i) + r.at.row + j / 2 * 8, c = r.at.column(j % 2);
      const float* w = r.p.floats + row * r.p.bands * 2;
      float sum = 0.0f;
      for (int band = 0; band < r.p.bands; ++band) {
        const int y = band * kColumns + c;
        sum = fmaf(load_global(w + 2 * band), r.outputs(t)[y], sum);
        sum = fmaf(load_global(w + 2 * band + 1), r.outputs(t + 1)[y], sum);
      }
      r.x[i][j] = sum;
    }
  }
}

// The x of this block's first layer: made from the outputs, or out of the inbox.
template <class Ring>
DEVICE void receive(Ring& r, int t) {
  if (r.owns_residual()) {
    if (r.rank == 0) {
      if constexpr (Ring::kInCluster) {
        if (t > 0) {
          mbarrier_wait(r.y_barrier(), t - 1);
          if (thread_index() == 0 && t + 1 < r.steps) mbarrier_expect(r.y_barrier(), r.y_message());
        }
      }
      enter(r, t);
    } else {
      mbarrier_wait(r.x_barrier(), t);
      if (thread_index() == 0 && t + 1 < r.steps) mbarrier_expect(r.x_barrier(), r.x_message());
      UNROLL
      for (int i = 0; i < Ring::Shape::kResidualsPerWarp; ++i) {
        const Float4 v = r.inbox()[r.residual_tile(i) * kWarp + r.at.lane];
        r.x[i][0] = v.x, r.x[i][1] = v.y, r.x[i][2] = v.z, r.x[i][3] = v.w;
      }
    }
    keep(r, 0, 0);
  }
  sync_threads();
}

// x to the next block if that has layers, the skip sum to the last.
template <class Ring>
DEVICE void send_on(Ring& r) {
  using Shape = typename Ring::Shape;
  if (r.owns_residual()) {
    const uint32_t barrier = remote_address(r.x_barrier(), r.rank + 1);
    UNROLL
    for (int i = 0; i < Shape::kResidualsPerWarp; ++i) {
      const uint32_t to =
          remote_address(r.inbox() + r.residual_tile(i) * kWarp + r.at.lane, r.rank + 1);
      send(to, Float4{r.x[i][0], r.x[i][1], r.x[i][2], r.x[i][3]}, barrier);
    }
    return;
  }
  const uint32_t barrier = remote_address(r.skip_barrier(), r.blocks - 1);
  UNROLL
  for (int i = 0; i < Shape::kSkipsPerWarp; ++i) {
    const int tile = r.skip_tile(i);
    if (tile >= Shape::kSkipTiles) continue;
    const uint32_t to =
        remote_address(r.skips(r.rank) + tile * kWarp + r.at.lane, r.blocks - 1);
    send(to, Float4{r.skip[i][0], r.skip[i][1], r.skip[i][2], r.skip[i][3]}, barrier);
    UNROLL
    for (int j = 0; j < 4; ++j) r.skip[i][j] = 0.0f;
  }
}

template <class Ring>
DEVICE void wavenet_ring(const WaveNetParams& params) {
  Ring r(params);
  start(r);
  for (int t = 0; t < r.steps; ++t) {
    receive(r, t);
    if constexpr (Ring::kFolds) folded_layers(r);
    else layers(r, t);
    if constexpr (Ring::kInCluster) {
      if (!r.last()) send_on(r);
    }
    if (r.last()) head(r, t);
    prepare(r, t + 1);
  }
  if (r.rank == 0 && thread_index() < kColumns && r.columns()[thread_index()].steps > 0) {
    *r.slot(thread_index()).step = r.columns()[thread_index()].step +
                                   r.columns()[thread_index()].steps;
  }
  if constexpr (Ring::kInCluster) cluster_sync();
}

}  // namespace clonewave
