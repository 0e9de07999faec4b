#include "launch.h"

namespace clonewave {

bool decoder_layout(DecoderParams& p, bool float32, int room) {
  constexpr int kColumnsAt = 512;  // decoder_block.h: barriers and columns come first
  int widest = 0, most = 0;
  for (int i = 0; i < p.matrices; ++i) {
    if (p.matrix[i].depth > widest) widest = p.matrix[i].depth;
    if (p.matrix[i].rows > most) most = p.matrix[i].rows;
    p.matrix[i].shared = -1;
  }
  if (p.mel > widest) widest = p.mel;
  p.operand_stride = widest + 4;
  p.inbox_floats = most * kColumns;
  p.past_at = kColumnsAt + kColumns * p.operand_stride * 4 + 2 * p.inbox_floats * 4;
  const int gate_tiles = (p.channels / 8 + p.blocks - 1) / p.blocks;
  p.shared_bytes = p.past_at + p.layers * gate_tiles * kWarp * 16;
  if (p.shared_bytes > room) return false;
  if (float32 || p.blocks == 1) return true;  // float32 tiles are read from L2
  // The convolutions first: they are the most, and the same tile is read by one warp alone.
  for (int pass = 0; pass < 2; ++pass) {
    for (int i = 0; i < p.matrices; ++i) {
      const bool convolution = i > p.prenet_layers && i < p.matrices - 1;
      if (convolution != (pass == 0)) continue;
      DecoderMatrix& m = p.matrix[i];
      const int tiles = (m.rows / 16 + p.blocks - 1) / p.blocks;
      const int bytes = tiles * 16 * m.depth * 2;
      if (p.shared_bytes + bytes > room) continue;
      m.shared = p.shared_bytes;
      p.shared_bytes += bytes;
    }
  }
  return true;
}

}  // namespace clonewave
