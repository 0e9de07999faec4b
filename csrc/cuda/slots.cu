// The table of slots of a launch; any device.
#include "launch.h"
#include "launcher.h"

namespace clonewave {
namespace {

__global__ void slots_kernel(const __grid_constant__ SlotTable table) {
  fill_word(table, static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x));
}

}  // namespace

const char* slots_fill(const SlotTable& table, void* stream) {
  const int blocks = (table.words * table.rows + kThreads - 1) / kThreads;
  return launch(slots_kernel, {blocks, 1, kThreads, 0, static_cast<cudaStream_t>(stream)}, table);
}

}  // namespace clonewave
