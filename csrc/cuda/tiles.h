// Products of 16-row weight tiles with a group of columns, and who owns what.
//
// A weight matrix is cut into tiles of 16 rows. One warp multiplies a tile with an operand of
// kColumns columns; lane = 4 * row + pair then holds the results of rows `row` and `row + 8`,
// columns 2 * pair and 2 * pair + 1 (the accumulators of mma.m16n8k16, in float32 mode too):
//   acc[0], acc[1] = [row][2 * pair], [row][2 * pair + 1];  acc[2], acc[3] the same of row + 8
// Tiles whose rows 0-7 are one quantity and 8-15 its partner (filter and gate, mean and log-scale)
// give a lane both of one channel.
//
// Operands lie in shared memory, [column][stride] with the depth k contiguous. The depth index is
// permuted so that a lane's part of 32 of them is 16 contiguous bytes; kernels/cuda_pack.py
// permutes the weights alike and writes them in the order in which lanes read them.
#pragma once

#include "ptx.h"

namespace clonewave {

struct Bfloat16 {
  using Stored = uint16_t;
  using Part = Word4;                // a lane's share of a block of weights
  static constexpr int kDepth = 16;  // depth of a block
  // Elements from column to column: rows 2i and 2i + 1 then lie in different banks.
  static HOST_DEVICE constexpr int stride(int depth) { return depth % 64 ? depth : depth + 32; }
  static DEVICE Stored store(float v) { return static_cast<Stored>(pack_bfloat16(v, 0.0f)); }
  static DEVICE float tanh(float x) { return tanh_approximate(x); }
  static DEVICE float sigmoid(float x) { return 0.5f + 0.5f * tanh_approximate(0.5f * x); }
};

struct Float32 {
  using Stored = float;
  struct Part {
    Float4 upper, lower;  // four of the depth, rows `row` and `row + 8`
  };
  static constexpr int kDepth = 4;
  static HOST_DEVICE constexpr int stride(int depth) { return depth + 4; }
  static DEVICE Stored store(float v) { return v; }
  static DEVICE float tanh(float x) { return tanhf(x); }
  static DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
};

// Where this thread's accumulators lie.
struct Lane {
  int warp, lane, row, pair;
  DEVICE Lane() {
    warp = thread_index() / kWarp;
    lane = thread_index() % kWarp;
    row = lane / 4;
    pair = lane % 4;
  }
  DEVICE int column(int i) const { return 2 * pair + i; }
};

// A lane's share of block `block` of a tile whose packed weights start at `tile`.
DEVICE Word4 part_of(const uint16_t* tile, int block, const Lane& at, bool global) {
  const Word4* from = reinterpret_cast<const Word4*>(tile) + block * kWarp + at.lane;
  return global ? load_global(from) : *from;
}
DEVICE Float32::Part part_of(const float* tile, int block, const Lane& at, bool) {
  const Float4* from = reinterpret_cast<const Float4*>(tile) + (block * 8 + at.row) * 2;
  return {load_global(from), load_global(from + 1)};
}

// 32 of the depth of a column as two blocks of MMA input; from float32 they are rounded.
DEVICE Word4 operand_words(const uint16_t* from) { return *reinterpret_cast<const Word4*>(from); }
DEVICE Word4 operand_words(const float* from) {
  const Float4 a = *reinterpret_cast<const Float4*>(from);
  const Float4 b = *reinterpret_cast<const Float4*>(from + 4);
  return {pack_bfloat16(a.x, a.y), pack_bfloat16(a.z, a.w), pack_bfloat16(b.x, b.y),
          pack_bfloat16(b.z, b.w)};
}

// acc += tile * operand. part(block) gives this lane's weights; column(c) the operand's column c,
// bfloat16 or float32. Four chains of MMA, joined in a fixed order.
template <class Parts, class Column>
DEVICE void multiply(Bfloat16, float (&acc)[4], int depth, const Lane& at, Parts part,
                     Column column) {
  const auto* mine = column(at.row) + 8 * at.pair;
  float more[3][4] = {};
  UNROLL
  for (int k = 0; k < depth; k += 64) {
    const Word4 b = operand_words(mine + k);
    mma(acc, part(k / 16), b.x, b.y);
    mma(more[0], part(k / 16 + 1), b.z, b.w);
    if (k + 32 < depth) {
      const Word4 c = operand_words(mine + k + 32);
      mma(more[1], part(k / 16 + 2), c.x, c.y);
      mma(more[2], part(k / 16 + 3), c.z, c.w);
    }
  }
  UNROLL
  for (int i = 0; i < 4; ++i) acc[i] += more[0][i] + (more[1][i] + more[2][i]);
}

DEVICE float dot4(const Float4& a, const Float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

template <class Parts, class Column>
DEVICE void multiply(Float32, float (&acc)[4], int depth, const Lane& at, Parts part,
                     Column column) {
  const float* left = column(at.column(0));
  const float* right = column(at.column(1));
  UNROLL_BY_4
  for (int k = 0; k < depth; k += 4) {
    const Float32::Part w = part(k / 4);
    const Float4 a = *reinterpret_cast<const Float4*>(left + k);
    const Float4 b = *reinterpret_cast<const Float4*>(right + k);
    acc[0] = dot4(w.upper, a, acc[0]);
    acc[1] = dot4(w.upper, b, acc[1]);
    acc[2] = dot4(w.lower, a, acc[2]);
    acc[3] = dot4(w.lower, b, acc[3]);
  }
}

DEVICE float relu(float v) { return v < 0.0f ? 0.0f : v; }  // fmaxf would hide a NaN

// Writes a tile's results as the operand of the next product, rows `first` on.
template <class E>
DEVICE void store_tile(typename E::Stored* operand, int stride, int first, const Lane& at,
                       const float (&v)[4]) {
  UNROLL
  for (int i = 0; i < 2; ++i) {
    typename E::Stored* column = operand + at.column(i) * stride + first + at.row;
    column[0] = E::store(v[i]);
    column[8] = E::store(v[2 + i]);
  }
}

}  // namespace clonewave
