// Python bindings of the CPU ops: numpy arrays in, checks, GIL released, call.
#include <memory>

#include "bind.h"

namespace {

WaveNetDims dims_of(const std::vector<Floats>& w, const std::vector<int>& dilations, int per_frame) {
  require(w.size() == 9, "need the nine arrays of WaveNetWeights");
  require(w[0].ndim() == 3 && w[4].ndim() == 1 && w[7].ndim() == 2, "weights: wrong dimensions");
  require(!dilations.empty() && per_frame > 0, "need layers and steps per frame");
  WaveNetDims d{};
  d.bands = static_cast<int>(w[0].shape(1));
  d.layers = static_cast<int>(dilations.size());
  d.residual_channels = static_cast<int>(w[0].shape(0));
  d.skip_channels = static_cast<int>(w[4].shape(0));
  d.outputs = static_cast<int>(w[7].shape(0));
  d.band_steps_per_frame = per_frame;
  d.dilations = dilations.data();
  d.softmax = d.outputs != 2 * d.bands;
  const int64_t r = d.residual_channels, s = d.skip_channels, o = d.outputs, n = d.layers;
  require(r > 0 && s > 0 && r % kChannelStep == 0 && s % kChannelStep == 0,
          "residual and skip channels must be multiples of 16");
  require(r <= kMaxChannels && s <= kMaxChannels && o <= kMaxChannels && 2 * d.bands <= kMaxChannels,
          "at most 512 channels");
  require(!d.softmax || d.bands == 1, "the softmax head needs one band");
  for (int dilation : dilations) require(dilation > 0, "dilations must be positive");
  require_shape(w[0], {r, d.bands, 2}, "inputs");
  require_shape(w[1], {n, 2 * r, r, 2}, "gates");
  require_shape(w[2], {n, r, r}, "residuals");
  require_shape(w[3], {n, s, r}, "skips");
  require_shape(w[5], {s, s}, "hidden");
  require_shape(w[6], {s}, "hidden_bias");
  require_shape(w[7], {o, s}, "outputs");
  require_shape(w[8], {o}, "outputs_bias");
  return d;
}

std::unique_ptr<WaveNet> make_wavenet(const std::vector<Floats>& w,
                                      const std::vector<int>& dilations, int per_frame,
                                      const std::string& precision, const std::string& isa) {
  const WaveNetDims dims = dims_of(w, dilations, per_frame);
  require(precision != "int16", "precision int16 is the decoder's");
  const WaveNetWeights weights{w[0].data(), w[1].data(), w[2].data(), w[3].data(), w[4].data(),
                               w[5].data(), w[6].data(), w[7].data(), w[8].data()};
  return std::make_unique<WaveNet>(dims, weights, precision_of(precision), isa.c_str());
}

// conditioning [batch, frames, layers, 2R]; randomness, out [batch, bands, band_steps].
void wavenet_generate(const WaveNet& net, const Floats& conditioning, const Floats& randomness,
                      Floats last, Floats history, Ints step, Floats out, int cores) {
  const WaveNetDims& d = net.dims();
  require(conditioning.ndim() == 4 && randomness.ndim() == 3, "wrong dimensions");
  const int64_t batch = randomness.shape(0), steps = randomness.shape(2), r = d.residual_channels;
  const int64_t frames = conditioning.shape(1);
  int64_t ring = 0;
  for (int i = 0; i < d.layers; ++i) ring += d.dilations[i];
  require_shape(conditioning, {batch, frames, d.layers, 2 * r}, "conditioning");
  require_shape(randomness, {batch, d.bands, steps}, "randomness");
  require_shape(out, {batch, d.bands, steps}, "out");
  require_shape(last, {batch, d.bands, 2}, "state.last");
  require_shape(history, {batch, ring, r}, "state.history");
  require_shape(step, {batch}, "state.step");
  std::vector<WaveNetStream> streams;
  for (int64_t n = 0; n < batch; ++n) {
    int64_t* at = step.mutable_data() + n;
    require(*at >= 0, "state.step is negative");
    const int64_t end = *at % d.band_steps_per_frame + steps;
    require(end <= frames * d.band_steps_per_frame, "conditioning has too few frames");
    streams.push_back({conditioning.data() + n * frames * d.layers * 2 * r,
                       randomness.data() + n * d.bands * steps,
                       out.mutable_data() + n * d.bands * steps,
                       last.mutable_data() + n * d.bands * 2, history.mutable_data() + n * ring * r,
                       at});
  }
  py::gil_scoped_release release;
  net.generate(streams.data(), static_cast<int>(batch), steps, cores);
}

// excitation, out [batch, bands, steps]; taps [batch, bands, order, frames].
void lpc(const Floats& excitation, const Floats& taps, const Floats& gain, Floats state, Floats out) {
  require(excitation.ndim() == 3 && taps.ndim() == 4, "wrong dimensions");
  const int64_t batch = excitation.shape(0), bands = excitation.shape(1);
  const int64_t steps = excitation.shape(2), order = taps.shape(2), frames = taps.shape(3);
  require_shape(taps, {batch, bands, order, frames}, "taps");
  require_shape(gain, {batch, bands, frames}, "gain");
  require_shape(state, {batch, bands, order}, "state");
  require_shape(out, {batch, bands, steps}, "out");
  require(frames > 0 ? steps % frames == 0 : steps == 0, "frames must divide band_steps");
  py::gil_scoped_release release;
  lpc_synthesis(excitation.data(), taps.data(), gain.data(), state.mutable_data(),
                out.mutable_data(), batch * bands, static_cast<int>(order), frames, steps);
}

// band_samples [batch, bands, steps]; filters [bands, length]; out [batch, bands * steps].
void pqmf(const Floats& band_samples, const Floats& filters, Floats out) {
  require(band_samples.ndim() == 3 && filters.ndim() == 2, "wrong dimensions");
  const int64_t batch = band_samples.shape(0), bands = band_samples.shape(1);
  const int64_t steps = band_samples.shape(2), length = filters.shape(1);
  require_shape(filters, {bands, length}, "filters");
  require_shape(out, {batch, bands * steps}, "out");
  require(length % 2 == 1, "filters need an odd length");
  py::gil_scoped_release release;
  pqmf_synthesis(band_samples.data(), filters.data(), out.mutable_data(), batch,
                 static_cast<int>(bands), static_cast<int>(length), steps);
}

void noise(uint64_t seed, uint32_t stream, uint64_t first_step, Floats out) {
  require(out.ndim() == 2, "out: need [bands, band_steps]");
  py::gil_scoped_release release;
  gaussian_noise(seed, stream, first_step, static_cast<int>(out.shape(0)), out.shape(1),
                 out.mutable_data());
}

// Instruction sets this build has code for, fastest first: None if usable, else the reason.
py::dict isas() {
  py::dict found;
  for (int i = 0; i < kIsaCount; ++i) {
    const Isa& isa = *kIsas[i];
    found[isa.name] = isa.runs_here() ? py::object(py::none())
                                      : py::object(py::str("this processor lacks it"));
  }
  return found;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Compiled CPU ops; see csrc/ops.h for the contracts and engine.kernels for the API.";
  m.def("isas", &isas);
  py::class_<WaveNet>(m, "WaveNet")
      .def(py::init(&make_wavenet), py::arg("weights"), py::arg("dilations"),
           py::arg("band_steps_per_frame"), py::arg("precision"), py::arg("isa"))
      .def_property_readonly("isa", [](const WaveNet& net) { return std::string(net.isa()); })
      .def_property_readonly("packed_bytes", &WaveNet::packed_bytes)
      .def("generate", &wavenet_generate, py::arg("conditioning").noconvert(),
           py::arg("randomness").noconvert(), py::arg("last").noconvert(),
           py::arg("history").noconvert(), py::arg("step").noconvert(), py::arg("out").noconvert(),
           py::arg("cores") = 1);
  bind_decoder(m);
  m.def("lpc_synthesis", &lpc, py::arg("excitation").noconvert(), py::arg("taps").noconvert(),
        py::arg("gain").noconvert(), py::arg("state").noconvert(), py::arg("out").noconvert());
  m.def("pqmf_synthesis", &pqmf, py::arg("band_samples").noconvert(),
        py::arg("filters").noconvert(), py::arg("out").noconvert());
  m.def("gaussian_noise", &noise, py::arg("seed"), py::arg("stream"), py::arg("first_step"),
        py::arg("out").noconvert());
}
