// Writes WaveNet weights as the stream that wavenet_isa.h reads; included by it alone.
#pragma once

namespace {

// A view of a matrix: element (row, k) at data[row * row_stride + k * k_stride].
struct Matrix {
  const float* data;
  int rows, k;
  int row_stride, k_stride;
  float at(int row, int column) const {
    return row < rows ? data[static_cast<size_t>(row) * row_stride + column * k_stride] : 0.0f;
  }
};

// Writes if there is somewhere to write to; always counts.
struct Packer {
  uint8_t* out;
  size_t bytes;

  void put(const void* value, size_t size) {
    if (out) memcpy(out + bytes, value, size);
    bytes += size;
  }

  void floats(const float* values, int n) {
    for (int i = 0; i < row_vectors(n) * kWidth; ++i) {
      const float v = i < n ? values[i] : 0.0f;
      put(&v, sizeof v);
    }
  }

  void element(Precision p, float v, float inverse_scale) {
    if (p == kF32) {
      put(&v, sizeof v);
    } else if (p == kF16) {
      const uint16_t half = clonewave::exact_half(v);
      put(&half, sizeof half);
    } else if (p == kBf16) {
      uint32_t bits;
      memcpy(&bits, &v, sizeof bits);
      const uint16_t high = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
      put(&high, sizeof high);
    } else if (p == kS16) {
      const int16_t stored = static_cast<int16_t>(lrintf(v * inverse_scale));
      put(&stored, sizeof stored);
    } else {
      const int q = static_cast<int>(lrintf(v * inverse_scale));
      const uint8_t stored = static_cast<uint8_t>(q + kInt8Offset);
      put(&stored, sizeof stored);
    }
  }

  // What one whole step of a row's weights is worth.
  static float step_of(Precision p, const Matrix& m, int row) {
    float largest = 0, block = 0, sum = 0;
    for (int k = 0; k < m.k; ++k) {
      const float size = fabsf(m.at(row, k));
      largest = fmaxf(largest, size);
      sum = k % kInt16Block == 0 ? size : sum + size;
      block = fmaxf(block, sum);
    }
    return p == kS8 ? largest / 127 : fmaxf(largest / 32767, block / kInt16Sum);
  }

  void matrix(Precision p, const Matrix& m) {
    const int vectors = row_vectors(m.rows), group = group_of(p);
    for (int first = 0; first < vectors; first += kTile1) {
      const int rows = smaller(kTile1, vectors - first) * kWidth, row0 = first * kWidth;
      float inverse[kTile1 * kWidth];
      for (int i = 0; i < rows; ++i) {
        const float step = step_of(p, m, row0 + i);
        inverse[i] = step > 0 ? 1 / step : 0;
        if (whole(p)) put(&step, sizeof step);
      }
      for (int k = 0; k < m.k; k += group) {
        for (int i = 0; i < rows; ++i) {
          for (int j = 0; j < group; ++j) element(p, m.at(row0 + i, k + j), inverse[i]);
        }
      }
    }
  }
};

size_t pack(const WaveNetDims& d, const WaveNetWeights& w, Precision p, uint8_t* packed) {
  const int r = d.residual_channels, s = d.skip_channels;
  const size_t gate = static_cast<size_t>(2 * r) * r * 2;
  Packer to{packed, 0};
  to.floats(w.skip_bias, s);
  to.matrix(kF32, {w.inputs, r, 2 * d.bands, 2 * d.bands, 1});
  to.matrix(p, {w.gates, 2 * r, r, 2 * r, 2});
  for (int layer = 0; layer < d.layers; ++layer) {
    const bool last = layer + 1 == d.layers;
    to.matrix(p, {w.gates + gate * layer + 1, 2 * r, r, 2 * r, 2});
    if (!last) {
      to.matrix(p, {w.gates + gate * (layer + 1), 2 * r, r, 2 * r, 2});
      to.matrix(p, {w.residuals + static_cast<size_t>(layer) * r * r, r, r, r, 1});
    }
    to.matrix(p, {w.skips + static_cast<size_t>(layer) * s * r, s, r, r, 1});
  }
  to.floats(w.hidden_bias, s);
  to.matrix(head_of(p), {w.hidden, s, s, s, 1});
  to.floats(w.outputs_bias, d.outputs);
  to.matrix(head_of(p), {w.outputs, d.outputs, s, s, 1});
  return to.bytes;
}

}  // namespace
