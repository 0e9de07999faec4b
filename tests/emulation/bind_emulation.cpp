// The CUDA kernels on a CPU, for tests: the launches of bind_cuda.cpp with host pointers, a seed.
#include "bind_launch.h"
#include "cuda/decoder_cluster.h"
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

template <class E, bool kCluster>
void emulate_decoder(const DecoderParams& p, uint64_t seed) {
  const int groups = (p.count + kColumns - 1) / kColumns;
  emulator::run(groups, p.blocks, kThreads, static_cast<size_t>(p.shared_bytes), seed,
                [&] { decoder_cluster<DecoderBlock<E, kCluster>>(p); });
}

void decoder(const std::vector<int>& sizes, const std::vector<int>& attention_of,
             const std::vector<std::vector<int64_t>>& matrices, float done_bias, uintptr_t weights,
             uintptr_t floats, uintptr_t scratch, uintptr_t slots, int count, int steps, int room,
             uint64_t seed) {
  const auto launch = decoder_launch_of(sizes, attention_of, matrices, done_bias, weights, floats,
                                        scratch, slots, count, steps, room);
  const DecoderParams& p = launch.params;
  if (launch.float32) {
    if (p.blocks > 1) emulate_decoder<Float32, true>(p, seed);
    else emulate_decoder<Float32, false>(p, seed);
  } else {
    if (p.blocks > 1) emulate_decoder<Bfloat16, true>(p, seed);
    else emulate_decoder<Bfloat16, false>(p, seed);
  }
}

void fill_slots(const std::vector<uint64_t>& first, const std::vector<uint64_t>& step, int rows,
                uintptr_t out) {
  const SlotTable table = slot_table_of(first, step, rows, out);
  const int threads = (table.words * rows + kThreads - 1) / kThreads * kThreads;
  for (int i = 0; i < threads; ++i) fill_word(table, i);
}

// Two blocks that do one thing wrong, to see that the emulator sees it.
void faulty(const std::string& what) {
  alignas(16) static const float source[4] = {};
  emulator::run(1, 2, kThreads, 1024, 0, [&] {
    auto* barrier = reinterpret_cast<uint64_t*>(shared_memory());
    float* data = reinterpret_cast<float*>(shared_memory() + 64);
    const bool one = thread_index() == 0;
    if (one) mbarrier_init(barrier, 1);
    cluster_sync();
    if (what == "nobody sends") {
      if (one) mbarrier_expect(barrier, 4);
      mbarrier_wait(barrier, 0);
    } else if (what == "announced twice" && one) {
      mbarrier_expect(barrier, 4);
      mbarrier_expect(barrier, 4);
    } else if (what == "not announced" && one) {
      send(remote_address(data, 1), 1.0f, remote_address(barrier, 1));
    } else if (what == "misaligned" && one) {
      send(remote_address(data + 1, 1), Float4{}, remote_address(barrier, 1));
    } else if (what == "copy not awaited" && one) {
      copy_async(data, source);
    } else if (what == "barrier passed by" && one) {
      return;
    } else if (what == "written past the end" && one) {
      data[(1024 - 64) / 4] = 1.0f;
    }
    sync_threads();
  });
}

}  // namespace

PYBIND11_MODULE(_emulation, m) {
  m.def("wavenet", &wavenet);
  m.def("decoder", &decoder);
  m.def("fill_slots", &fill_slots);
  m.def("faulty", &faulty);
  py::register_exception<emulator::Fault>(m, "Fault", PyExc_RuntimeError);
}
