// The CUDA kernels on a CPU, for tests: the launches of bind_cuda.cpp with host pointers and a seed.
#include "bind_wavenet_params.h"
#include "cuda/variants.h"

namespace {

using namespace clonewave;

// Small networks in every schedule, and the default one in the schedule it runs in.
#define EMULATED_WAVENETS(X)           \
  X(Bfloat16, 32, 64, 1, true, false)  \
  X(Bfloat16, 32, 64, 2, true, false)  \
  X(Bfloat16, 32, 64, 2, true, true)   \
  X(Bfloat16, 64, 128, 4, true, false) \
  X(Float32, 32, 64, 0, true, false)   \
  X(Bfloat16, 32, 64, 0, false, false) \
  X(Float32, 32, 64, 0, false, false)  \
  X(Float32, 128, 256, 0, false, false)

template <class Form>
bool emulate(const WaveNetLaunch& launch, uint64_t seed) {
  if (!(Form::kVariant == launch.variant)) return false;
  const WaveNetParams& p = launch.params;
  const int groups = (p.count + kColumns - 1) / kColumns;
  emulator::run(groups, p.blocks, kThreads, Form::shared_bytes(p), seed,
                [&] { wavenet_ring<typename Form::Ring>(p); });
  return true;
}

void wavenet(const std::vector<int>& shape, const std::vector<int>& dilations, uintptr_t weights,
             uintptr_t floats, uintptr_t slots, int count, uint64_t seed) {
  const auto launch = wavenet_launch_of(shape, dilations, weights, floats, slots, count);
#define TRY(...) \
  if (emulate<WaveNetForm<__VA_ARGS__>>(launch, seed)) return;
  EMULATED_WAVENETS(TRY)
  throw std::invalid_argument("this variant is not among the emulated ones");
}

}  // namespace

PYBIND11_MODULE(_emulation, m) {
  m.def("wavenet", &wavenet);
  py::register_exception<emulator::Fault>(m, "Fault", PyExc_RuntimeError);
}
