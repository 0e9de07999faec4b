// Python's description of a launch, checked; shared by the CUDA module and its emulation.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"
#include "cuda/sizes.h"

namespace py = pybind11;

namespace clonewave {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
T* pointer_at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// first, step: words of a slot, see slots.h.
inline SlotTable slot_table_of(const std::vector<uint64_t>& first,
                               const std::vector<uint64_t>& step, int rows, uintptr_t out) {
  require(first.size() == step.size() && first.size() <= kMaxSlotWords, "slots: wrong words");
  require(rows >= 0 && rows < (1 << 24), "slots: wrong rows");
  SlotTable table{pointer_at<uint64_t>(out), static_cast<int>(first.size()), rows, {}, {}};
  for (size_t i = 0; i < first.size(); ++i) table.first[i] = first[i], table.step[i] = step[i];
  return table;
}

struct WaveNetLaunch {
  WaveNetVariant variant;
  WaveNetParams params;
};

// shape: residual, skip, held, cluster, fold, float32, blocks, layers a block, bands, codes,
// output tiles, steps a frame.
inline WaveNetLaunch wavenet_launch_of(const std::vector<int>& shape,
                                       const std::vector<int>& dilations, uintptr_t weights,
                                       uintptr_t floats, uintptr_t slots, int count) {
  require(shape.size() == 12, "shape: need 12 numbers");
  WaveNetLaunch launch{{shape[0], shape[1], shape[2], shape[3] != 0, shape[4] != 0, shape[5] != 0},
                       {}};
  WaveNetParams& p = launch.params;
  p.blocks = shape[6], p.layers_per_block = shape[7], p.bands = shape[8], p.codes = shape[9];
  p.output_tiles = shape[10], p.steps_per_frame = shape[11];
  p.layers = static_cast<int>(dilations.size());
  p.weights = pointer_at<const void>(weights);
  p.floats = pointer_at<const float>(floats);
  p.slots = pointer_at<const WaveNetSlot>(slots);
  p.count = count;
  require(p.layers > 0 && p.layers <= kMaxRingLayers, "need 1 to 64 layers");
  require(p.bands > 0 && p.bands <= kMaxRingBands, "need 1 to 8 bands");
  require(p.blocks > 0 && p.blocks * p.layers_per_block >= p.layers, "too few blocks");
  require((p.blocks - 1) * p.layers_per_block <= p.layers, "a block without layers");
  require(launch.variant.cluster == (p.blocks > 1), "a cluster needs two blocks or more");
  require(p.codes % kWarp == 0 && (p.codes ? p.codes : 2 * p.bands) <= 16 * p.output_tiles,
          "outputs do not fit their tiles");
  require(p.steps_per_frame > 0 && count >= 0, "need steps a frame and slots");
  int ring = 0;
  for (int i = 0; i < p.layers; ++i) {
    const int dilation = dilations[i];
    require(dilation > 0 && !(dilation & (dilation - 1)), "dilations must be powers of two");
    p.dilations[i] = dilation;
    p.rings[i] = ring;
    ring += dilation;
  }
  return launch;
}

struct DecoderLaunch {
  bool float32;
  DecoderParams params;
};

// sizes: float32, blocks, mel, channels, layers, kernel_size, prenet layers, rows of elapsed,
// window, max_hold. matrices: (offset, rows, depth) of each, then the past taps of each layer.
// room: bytes of shared memory a block may have.
inline DecoderLaunch decoder_launch_of(const std::vector<int>& sizes,
                                       const std::vector<int>& attention_of,
                                       const std::vector<std::vector<int64_t>>& matrices,
                                       float done_bias, uintptr_t weights, uintptr_t floats,
                                       uintptr_t scratch, uintptr_t slots, int count, int steps,
                                       int room) {
  require(sizes.size() == 10, "sizes: need 10 numbers");
  DecoderLaunch launch{sizes[0] != 0, {}};
  DecoderParams& p = launch.params;
  p.blocks = sizes[1], p.mel = sizes[2], p.channels = sizes[3], p.layers = sizes[4];
  p.kernel_size = sizes[5], p.prenet_layers = sizes[6], p.elapsed_rows = sizes[7];
  p.window = sizes[8], p.max_hold = sizes[9];
  p.matrices = p.prenet_layers + 1 + p.layers + 1;
  require(p.layers > 0 && p.layers <= kMaxDecoder, "need 1 to 16 layers");
  require(p.prenet_layers > 0 && p.prenet_layers <= kMaxPrenet, "need 1 to 4 prenet layers");
  require(p.window > 0 && p.window <= kMaxWindow, "need a window of 1 to 16 symbols");
  require(p.kernel_size > 0 && p.elapsed_rows > 0 && p.blocks > 0, "sizes must be positive");
  require(p.mel > 0 && p.mel % 16 == 0 && p.channels > 0 && p.channels % 16 == 0,
          "mel and channels must be multiples of 16");
  require(attention_of.size() == static_cast<size_t>(p.layers), "attention_of: one a layer");
  require(matrices.size() == static_cast<size_t>(p.matrices + p.layers), "matrices: wrong number");
  for (int i = 0; i < p.layers; ++i) p.attention_of[i] = attention_of[i];
  for (int i = 0; i < p.matrices + p.layers; ++i) {
    const std::vector<int64_t>& from = matrices[i];
    require(from.size() == 3 && from[1] % 16 == 0 && from[2] % 32 == 0, "matrix: wrong sizes");
    require(from[1] / 16 >= p.blocks, "every block needs a tile of every matrix");
    DecoderMatrix& to = i < p.matrices ? p.matrix[i] : p.past[i - p.matrices];
    to = {from[0], static_cast<int>(from[1]), static_cast<int>(from[2]), -1};
  }
  p.done_bias = done_bias;
  p.weights = pointer_at<const void>(weights);
  p.floats = pointer_at<const float>(floats);
  p.scratch = pointer_at<float>(scratch);
  p.slots = pointer_at<const DecoderSlot>(slots);
  p.count = count, p.steps = steps;
  require(decoder_layout(p, launch.float32, room), "activations do not fit into shared memory");
  return launch;
}

}  // namespace clonewave
