// Linear prediction and filter bank synthesis. Small: plain loops, the compiler vectorises.
#include <algorithm>
#include <vector>

#include "../ops.h"

namespace clonewave {

void lpc_synthesis(const float* excitation, const float* taps, const float* gain, float* state,
                   float* out, int64_t rows, int order, int64_t frames, int64_t steps) noexcept {
  const int64_t repeat = frames ? steps / frames : 0;
  for (int64_t row = 0; row < rows; ++row) {
    const float* e = excitation + row * steps;
    const float* a = taps + row * order * frames;
    float* past = state + row * order;
    float* y = out + row * steps;
    for (int64_t t = 0; t < steps; ++t) {
      const int64_t frame = t / repeat;
      float sum = 0;
      for (int k = order - 1; k >= 0; --k) {  // the newest output last: it is the latest to be ready
        sum += a[k * frames + frame] * (t > k ? y[t - 1 - k] : past[k - t]);
      }
      y[t] = gain[row * frames + frame] * e[t] + sum;
    }
    for (int k = order - 1; k >= 0; --k) past[k] = steps > k ? y[steps - 1 - k] : past[k - steps];
  }
}

void pqmf_synthesis(const float* band_samples, const float* filters, float* out, int64_t batch,
                    int bands, int length, int64_t steps) {
  std::vector<float> phase(static_cast<size_t>(steps));
  for (int64_t item = 0; item < batch; ++item) {
    for (int r = 0; r < bands; ++r) {
      std::fill(phase.begin(), phase.end(), 0.0f);
      for (int b = 0; b < bands; ++b) {
        const float* x = band_samples + (item * bands + b) * steps;
        // Tap k meets band step n + shift when r + k - length / 2 = bands * shift.
        for (int k = 0; k < length; ++k) {
          const int64_t offset = r + k - length / 2;
          if (offset % bands != 0) continue;
          const int64_t shift = offset / bands;
          const float tap = filters[b * length + k];
          const int64_t begin = std::max<int64_t>(0, -shift);
          const int64_t end = std::min(steps, steps - shift);
          for (int64_t n = begin; n < end; ++n) phase[n] += tap * x[n + shift];
        }
      }
      float* to = out + item * bands * steps + r;
      for (int64_t n = 0; n < steps; ++n) to[n * bands] = phase[n];
    }
  }
}

}  // namespace clonewave
