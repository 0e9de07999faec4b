// The layers of one block of the WaveNet ring: products, gates, and what is prepared for the next
// step while x is with other blocks.
#pragma once

#include "wavenet_block.h"

namespace clonewave {

// Adds a column of the conditioning to a gate tile: filter rows, then gate rows.
template <class Ring>
DEVICE void add_conditioning(Ring& r, float (&acc)[4], int l, int tile, int t) {
  constexpr int R = Ring::kResidualChannels;
  UNROLL
  for (int i = 0; i < 2; ++i) {
    const auto& column = r.columns()[r.at.column(i)];
    if (t >= column.lasts) continue;
    const int64_t frame = static_cast<unsigned>(column.begin + t) / r.p.steps_per_frame;
    const float* from = column.conditioning + (frame * r.p.layers + r.first + l) * 2 * R;
    acc[i] += load_global(from + 8 * tile + r.at.row);
    acc[2 + i] += load_global(from + R + 8 * tile + r.at.row);
  }
}

// acc += W x, W one tile of packed weights at `from`, depth R.
template <class Ring, class Column>
DEVICE void multiply_from(Ring& r, float (&acc)[4], const typename Ring::Stored* from, int tile,
                          Column column, bool global) {
  constexpr int R = Ring::kResidualChannels;
  const auto* packed = from + tile * 16 * R;
  multiply(typename Ring::Element{}, acc, R, r.at,
           [&](int block) { return part_of(packed, block, r.at, global); }, column);
}

template <class Ring>
DEVICE void multiply_current(Ring& r, float (&acc)[4], int l, int i,
                             const typename Ring::Stored* x) {
  const auto column = [&](int c) { return x + c * Ring::kStride; };
  if constexpr (Ring::kResident) {
    multiply(typename Ring::Element{}, acc, Ring::kResidualChannels, r.at,
             [&](int block) { return r.current[l][i][block]; }, column);
  } else {
    multiply_from(r, acc, r.global_weights(l) + Ring::Shape::kCurrent, r.at.warp + i * kWarps,
                  column, true);
  }
}

// z = tanh(filter) sigmoid(gate), the operand of the residual and skip products.
template <class Ring>
DEVICE void store_gated(Ring& r, const float (&acc)[4], int tile, typename Ring::Stored* z) {
  using E = typename Ring::Element;
  UNROLL
  for (int i = 0; i < 2; ++i) {
    z[r.at.column(i) * Ring::kStride + 8 * tile + r.at.row] =
        E::store(E::tanh(acc[i]) * E::sigmoid(acc[2 + i]));
  }
}

// Streaming: history of layer l at step t, x[t - dilation]. Empty columns see any floats.
template <class Ring>
DEVICE const float* history_at(Ring& r, int l, int t, int c) {
  const auto& column = r.columns()[c];
  const int layer = r.first + l;
  const int64_t slot = r.p.rings[layer] + ((column.step + t) & (r.p.dilations[layer] - 1));
  return column.steps ? column.history + slot * Ring::kResidualChannels : r.kept(0);
}

template <class Ring>
DEVICE void gate(Ring& r, int l, int t) {
  using Shape = typename Ring::Shape;
  UNROLL
  for (int i = 0; i < Shape::kGatesPerWarp; ++i) {
    const int tile = r.at.warp + i * kWarps;
    if (tile >= Shape::kGateTiles) continue;
    float acc[4] = {};
    if constexpr (Ring::kResident) {
      const Float4 known = *r.before(l, tile);
      acc[0] = known.x, acc[1] = known.y, acc[2] = known.z, acc[3] = known.w;
    } else {
      add_conditioning(r, acc, l, tile, t);
      multiply_from(r, acc, r.global_weights(l) + Shape::kPast, tile,
                    [&](int c) { return history_at(r, l, t, c); }, true);
    }
    multiply_current(r, acc, l, i, r.x_operand(0));
    store_gated(r, acc, tile, r.z_operand(0));
  }
}

// x becomes the input of layer l of this block: as operand and, for the history, as it is.
template <class Ring>
DEVICE void keep(Ring& r, int l, int operand) {
  constexpr int R = Ring::kResidualChannels;
  UNROLL
  for (int i = 0; i < Ring::Shape::kResidualsPerWarp; ++i) {
    const int row = 16 * r.residual_tile(i);
    store_tile<typename Ring::Element>(r.x_operand(operand), Ring::kStride, row, r.at, r.x[i]);
    store_tile<Float32>(r.kept(l), R, row, r.at, r.x[i]);
  }
}

// x += W_res z and skip += W_skip z of layer l, each by the warps that own such tiles.
template <class Ring>
DEVICE void add_layer(Ring& r, int l, const typename Ring::Stored* z) {
  using Shape = typename Ring::Shape;
  const auto column = [&](int c) { return z + c * Ring::kStride; };
  if (r.owns_residual()) {
    if (r.first + l == r.p.layers - 1) return;  // nobody needs x beyond the last layer
    UNROLL
    for (int i = 0; i < Shape::kResidualsPerWarp; ++i) {
      if constexpr (Ring::kResident) {
        multiply(typename Ring::Element{}, r.x[i], Ring::kResidualChannels, r.at,
                 [&](int block) { return r.residual[l][i][block]; }, column);
      } else {
        multiply_from(r, r.x[i], r.global_weights(l) + Shape::kResidual, r.residual_tile(i), column,
                      true);
      }
    }
    return;
  }
  UNROLL
  for (int i = 0; i < Shape::kSkipsPerWarp; ++i) {
    if (r.skip_tile(i) >= Shape::kSkipTiles) continue;
    multiply_from(r, r.skip[i], r.outer_weights(l) + Shape::kSkip, r.skip_tile(i), column,
                  !Ring::kResident);
  }
}

// Calls work(column, channel) for the first of every four channels of every column.
template <class Ring, class Work>
DEVICE void for_each_quad(Work work) {
  constexpr int kQuads = Ring::kResidualChannels / 4;
  for (int i = thread_index(); i < kColumns * kQuads; i += kThreads) {
    work(i / kQuads, i % kQuads * 4);
  }
}

template <class Ring>
DEVICE float* history_quad(Ring& r, int l, int t, int c, int channel) {
  const auto& column = r.columns()[c];
  const int layer = r.first + l;
  const int64_t slot = r.p.rings[layer] + ((column.step + t) & (r.p.dilations[layer] - 1));
  return column.history + slot * Ring::kResidualChannels + channel;
}

template <class Ring>
DEVICE void write_history(Ring& r, int l, int t) {
  for_each_quad<Ring>([&](int c, int channel) {
    if (t >= r.columns()[c].steps) return;
    *reinterpret_cast<Float4*>(history_quad(r, l, t, c, channel)) =
        *reinterpret_cast<const Float4*>(r.kept(l) + c * Ring::kResidualChannels + channel);
  });
}

template <class Ring>
DEVICE void one_layer(Ring& r, int l, int t) {
  gate(r, l, t);
  sync_threads();
  if constexpr (!Ring::kResident) write_history(r, l, t);
  add_layer(r, l, r.z_operand(0));
  if (l + 1 < r.count) {
    if (r.owns_residual()) keep(r, l + 1, 0);
    sync_threads();
  }
}

// Layer by layer: gate, then residual and skip, with a barrier after each.
template <class Ring>
DEVICE void layers(Ring& r, int t) {
  if constexpr (Ring::kResident) {
    UNROLL
    for (int l = 0; l < Ring::kHeld; ++l) {
      if (l < r.count) one_layer(r, l, t);
    }
  } else {
    for (int l = 0; l < r.count; ++l) one_layer(r, l, t);
  }
}

// The same with one barrier a layer: W_cur x[l] = W_cur x[l - 1] + (W_cur W_res[l - 1]) z[l - 1],
// so a gate needs only what the layer before the last has left and the last z.
template <class Ring>
DEVICE void folded_layers(Ring& r) {
  using Shape = typename Ring::Shape;
  UNROLL
  for (int l = 0; l < Ring::kHeld; ++l) {
    if (l >= r.count) continue;
    const int from = l ? l - 1 : 0;
    UNROLL
    for (int i = 0; i < Shape::kGatesPerWarp; ++i) {
      const int tile = r.at.warp + i * kWarps;
      if (tile >= Shape::kGateTiles) continue;
      const Float4 known = *r.before(l, tile);
      float acc[4] = {known.x, known.y, known.z, known.w};
      multiply_current(r, acc, l, i, r.x_operand(from));
      if (l) {
        const auto* z = r.z_operand(from);
        multiply(typename Ring::Element{}, acc, Ring::kResidualChannels, r.at,
                 [&](int block) { return r.folded[l][i][block]; },
                 [&](int c) { return z + c * Ring::kStride; });
      }
      store_gated(r, acc, tile, r.z_operand(l));
    }
    if (l) {
      add_layer(r, from, r.z_operand(from));
      if (r.owns_residual()) keep(r, l, l);
    }
    sync_threads();
  }
  UNROLL
  for (int l = 0; l < Ring::kHeld; ++l) {
    if (l == r.count - 1) add_layer(r, l, r.z_operand(l));
  }
}

// Resident: history of step t - 1 goes out, x[t - dilation] comes in, and the part of every gate
// that it and the conditioning make is computed before x(t) is there.
template <class Ring>
DEVICE void prepare(Ring& r, int t) {
  using Shape = typename Ring::Shape;
  if constexpr (Ring::kResident) {
    for (int l = 0; l < r.count; ++l) {
      if (t > 0) write_history(r, l, t - 1);
      const bool just_made = t > 0 && r.p.dilations[r.first + l] == 1;
      for_each_quad<Ring>([&](int c, int channel) {
        if (t >= r.columns()[c].steps) return;
        float* to = r.past(l) + c * Shape::kPastStride + channel;
        const float* kept = r.kept(l) + c * Ring::kResidualChannels + channel;
        if (just_made) *reinterpret_cast<Float4*>(to) = *reinterpret_cast<const Float4*>(kept);
        else copy_async(to, history_quad(r, l, t, c, channel));
      });
    }
    copy_wait();
    sync_threads();
    if (t >= r.steps) return;
    for (int l = 0; l < r.count; ++l) {
      for (int tile = r.at.warp; tile < Shape::kGateTiles; tile += kWarps) {
        float acc[4] = {};
        add_conditioning(r, acc, l, tile, t);
        multiply_from(r, acc, r.outer_weights(l) + Shape::kPast, tile,
                      [&](int c) { return r.past(l) + c * Shape::kPastStride; }, false);
        *r.before(l, tile) = {acc[0], acc[1], acc[2], acc[3]};
      }
    }
  } else {
    sync_threads();
  }
}

}  // namespace clonewave
