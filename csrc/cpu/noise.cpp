// Counter-based standard normal noise: Philox4x32-10 and Box-Muller.
#include <cmath>

#include "../ops.h"

namespace clonewave {
namespace {

struct Block {
  uint32_t word[4];
};

Block philox(Block c, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c.word[0], b = uint64_t{0xCD9E8D57} * c.word[2];
    c = {{static_cast<uint32_t>(b >> 32) ^ c.word[1] ^ key0, static_cast<uint32_t>(b),
          static_cast<uint32_t>(a >> 32) ^ c.word[3] ^ key1, static_cast<uint32_t>(a)}};
    key0 += 0x9E3779B9, key1 += 0xBB67AE85;
  }
  return c;
}

// Both exact in float32: the radius from 23 bits in (0, 1), the angle from 24 bits in [0, 1).
void normal_pair(uint32_t a, uint32_t b, float* first, float* second) {
  const float u = (static_cast<float>(a >> 9) + 0.5f) * 0x1p-23f;
  const float angle = static_cast<float>(b >> 8) * 0x1p-24f * 6.283185307179586f;
  const float radius = std::sqrt(-2 * std::log(u));
  *first = radius * std::cos(angle);
  *second = radius * std::sin(angle);
}

}  // namespace

void gaussian_noise(uint64_t seed, uint32_t stream, uint64_t first_step, int bands, int64_t steps,
                    float* out) noexcept {
  for (int64_t t = 0; t < steps; ++t) {
    const uint64_t step = first_step + static_cast<uint64_t>(t);
    for (int band = 0; band < bands; band += 4) {
      const Block block = philox({{static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32),
                                   stream, static_cast<uint32_t>(band / 4)}},
                                 static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
      float normal[4];
      normal_pair(block.word[0], block.word[1], &normal[0], &normal[1]);
      normal_pair(block.word[2], block.word[3], &normal[2], &normal[3]);
      for (int i = 0; i < 4 && band + i < bands; ++i) out[(band + i) * steps + t] = normal[i];
    }
  }
}

}  // namespace clonewave
