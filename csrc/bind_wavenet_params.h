// Python's description of a WaveNet launch, checked; shared by the CUDA module and its emulation.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.h"

namespace py = pybind11;

namespace clonewave {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

template <class T>
T* pointer_at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
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

}  // namespace clonewave
