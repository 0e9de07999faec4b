// One compiled form of a kernel, as launchers and the host emulation see it.
#pragma once

#include "launch.h"
#include "wavenet_ring.h"

namespace clonewave {

template <class E>
constexpr bool is_float32() {
  return sizeof(typename E::Stored) == 4;
}

template <class E, int R, int S, int kHeld, bool kCluster, bool kFold>
struct WaveNetForm {
  using Ring = RingBlock<E, R, S, kHeld, kCluster, kFold>;
  static constexpr WaveNetVariant kVariant{R, S, kHeld, kCluster, kFold, is_float32<E>()};

  // The largest block of a ring.
  static size_t shared_bytes(const WaveNetParams& p) {
    const int last = p.layers - (p.blocks - 1) * p.layers_per_block;
    const int others = p.blocks > 1 ? p.layers_per_block : 0;
    const int a = Ring::Shape::shared_bytes(others, p.blocks, p.output_tiles, p.codes, false);
    const int b = Ring::Shape::shared_bytes(last > 0 ? last : 0, p.blocks, p.output_tiles, p.codes,
                                            true);
    return static_cast<size_t>(a > b ? a : b);
  }
};

}  // namespace clonewave
