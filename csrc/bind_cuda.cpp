// Python bindings of the CUDA kernels: device pointers and the stream come in as integers, so this
// module is built without torch; engine.kernels.cuda_* keep the tensors alive. Errors of the
// runtime become exceptions.
#include "bind_launch.h"

namespace {

using namespace clonewave;

void check(const char* error) {
  if (error) throw std::runtime_error(std::string("CUDA: ") + error);
}

int shared_room() {
  const char* error = nullptr;
  const int bytes = shared_memory_room(&error);
  check(error);
  return bytes;
}

void wavenet(const std::vector<int>& shape, const std::vector<int>& dilations, uintptr_t weights,
             uintptr_t floats, uintptr_t slots, int count, uintptr_t stream) {
  const auto launch = wavenet_launch_of(shape, dilations, weights, floats, slots, count);
  void* on = pointer_at<void>(stream);
  check(launch.variant.cluster ? wavenet_launch_ring(launch.variant, launch.params, on)
                               : wavenet_launch_plain(launch.variant, launch.params, on));
}

void fill_slots(const std::vector<uint64_t>& first, const std::vector<uint64_t>& step, int rows,
                uintptr_t out, uintptr_t stream) {
  check(slots_fill(slot_table_of(first, step, rows, out), pointer_at<void>(stream)));
}

// How many rings the current device holds at once.
int resident_rings(const std::vector<int>& shape, const std::vector<int>& dilations,
                   uintptr_t weights, uintptr_t floats) {
  const auto launch = wavenet_launch_of(shape, dilations, weights, floats, 0, kColumns);
  const char* error = nullptr;
  const int found = wavenet_resident_rings(launch.variant, launch.params, &error);
  check(error);
  return found;
}

void decoder(const std::vector<int>& sizes, const std::vector<int>& attention_of,
             const std::vector<std::vector<int64_t>>& matrices, float done_bias, uintptr_t weights,
             uintptr_t floats, uintptr_t scratch, uintptr_t slots, int count, int steps,
             uintptr_t stream) {
  const auto launch = decoder_launch_of(sizes, attention_of, matrices, done_bias, weights, floats,
                                        scratch, slots, count, steps, shared_room());
  void* on = pointer_at<void>(stream);
  check(launch.params.blocks > 1 ? decoder_launch_cluster(launch.float32, launch.params, on)
                                 : decoder_launch_plain(launch.float32, launch.params, on));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels; csrc/cuda/launch.h has the contracts, engine.kernels the API.";
  m.def("wavenet", &wavenet, py::arg("shape"), py::arg("dilations"), py::arg("weights"),
        py::arg("floats"), py::arg("slots"), py::arg("count"), py::arg("stream"));
  m.def("fill_slots", &fill_slots, py::arg("first"), py::arg("step"), py::arg("rows"),
        py::arg("out"), py::arg("stream"));
  m.def("resident_rings", &resident_rings, py::arg("shape"), py::arg("dilations"),
        py::arg("weights"), py::arg("floats"));
  m.def("decoder", &decoder, py::arg("sizes"), py::arg("attention_of"), py::arg("matrices"),
        py::arg("done_bias"), py::arg("weights"), py::arg("floats"), py::arg("scratch"),
        py::arg("slots"), py::arg("count"), py::arg("steps"), py::arg("stream"));
}
