// Counter-based standard normal noise inside a kernel, as the op gaussian_noise defines it.
#pragma once

#include "ptx.h"

namespace clonewave {

// The noise of one (seed, stream, step, band): Philox4x32-10, then Box-Muller.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
DEVICE float gaussian_at(uint64_t seed, uint32_t stream, uint64_t step, int band) {
  uint32_t c0 = static_cast<uint32_t>(step), c1 = static_cast<uint32_t>(step >> 32);
  uint32_t c2 = stream, c3 = static_cast<uint32_t>(band / 4);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint32_t a = multiply_high(0xD2511F53u, c0), b = multiply_high(0xCD9E8D57u, c2);
    const uint32_t low_a = 0xD2511F53u * c0, low_b = 0xCD9E8D57u * c2;
    c0 = b ^ c1 ^ k0, c1 = low_b, c2 = a ^ c3 ^ k1, c3 = low_a;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  const bool second = band % 4 >= 2;
  const uint32_t x = second ? c2 : c0, y = second ? c3 : c1;
  const float radius = sqrtf(-2 * logf((static_cast<float>(x >> 9) + 0.5f) * 0x1p-23f));
  const float half_turns = static_cast<float>(y >> 8) * 0x1p-23f;  // the angle over pi, exact
  return radius * (band % 2 ? sin_pi(half_turns) : cos_pi(half_turns));
}

}  // namespace clonewave
