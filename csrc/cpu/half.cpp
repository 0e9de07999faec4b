// float32 values that are float16 numbers: which are, and their bits.
#include <cmath>
#include <cstring>

#include "../ops.h"

namespace clonewave {

bool all_halves(const float* values, size_t n) noexcept {
  for (size_t i = 0; i < n; ++i) {
    const float size = std::fabs(values[i]);
    // Below 2**-14 the steps of float16 are 2**-24; above, 11 bits count.
    const float step = size < 0x1p-14f ? 0x1p-24f : std::ldexp(1.0f, std::ilogb(size) - 10);
    if (!(size < 65520.0f) || std::nearbyint(size / step) * step != size) return false;
  }
  return true;
}

uint16_t exact_half(float value) noexcept {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000;
  const float size = std::fabs(value);
  if (size < 0x1p-14f) return static_cast<uint16_t>(sign | static_cast<uint32_t>(size * 0x1p24f));
  return static_cast<uint16_t>(sign | ((bits & 0x7fffffff) - (112u << 23)) >> 13);
}

}  // namespace clonewave
