// Python bindings of the attention decoder: numpy arrays in, checks, GIL released, call.
#include <algorithm>
#include <memory>
#include <new>

#include "bind.h"

namespace {

using Bools = py::array_t<bool, py::array::c_style>;

int size_of(const Floats& array, int axis) { return static_cast<int>(array.shape(axis)); }

// prenet: a matrix per layer; rest: the arrays of DecoderWeights from `enter` to `done_bias`.
DecoderDims dims_of(const std::vector<Floats>& prenet, const std::vector<Floats>& rest,
                    const std::vector<int>& attention_layers, int window, int max_hold) {
  require(!prenet.empty() && prenet.size() <= kMaxPrenet, "need 1 to 4 prenet layers");
  require(rest.size() == 8, "need the arrays of DecoderWeights");
  require(rest[1].ndim() == 2 && rest[2].ndim() == 4 && rest[4].ndim() == 2, "wrong dimensions");
  require(window > 0 && window <= kMaxWindow, "need a window of 1 to 16 symbols");
  require(max_hold > 0, "max_hold must be positive");
  DecoderDims d{};
  d.mel = size_of(rest[4], 0);
  d.channels = size_of(rest[4], 1);
  d.layers = size_of(rest[2], 0);
  d.kernel_size = size_of(rest[2], 3);
  d.elapsed_rows = size_of(rest[1], 0);
  d.prenet_layers = static_cast<int>(prenet.size());
  d.attention_layers = static_cast<int>(attention_layers.size());
  d.window = window;
  d.max_hold = max_hold;
  require(d.layers > 0 && d.layers <= kMaxDecoder, "need 1 to 16 layers");
  require(d.kernel_size > 0 && d.elapsed_rows > 0, "need a kernel size and rows of elapsed");
  require(d.channels > 0 && d.channels % kChannelStep == 0 && d.mel > 0 && d.mel % kChannelStep == 0,
          "channels and mel must be multiples of 16");
  int width = d.mel;
  for (int i = 0; i < d.prenet_layers; width = d.prenet[i++]) {
    require(prenet[i].ndim() == 2 && prenet[i].shape(0) > 0, "prenet: wrong dimensions");
    d.prenet[i] = size_of(prenet[i], 0);
    require(d.prenet[i] % kChannelStep == 0, "prenet channels must be multiples of 16");
    require_shape(prenet[i], {d.prenet[i], width}, "prenet");
  }
  std::fill(d.attention_of, d.attention_of + kMaxDecoder, -1);
  for (int a = 0; a < d.attention_layers; ++a) {
    const int layer = attention_layers[a];
    require(layer >= 0 && layer < d.layers && d.attention_of[layer] < 0,
            "attention_layers: need distinct layers");
    d.attention_of[layer] = a;
  }
  const int64_t c = d.channels;
  require_shape(rest[0], {c, width}, "enter");
  require_shape(rest[1], {d.elapsed_rows, c}, "elapsed");
  require_shape(rest[2], {d.layers, 2 * c, c, d.kernel_size}, "convs");
  require_shape(rest[3], {d.layers, 2 * c}, "conv_bias");
  require_shape(rest[5], {d.mel}, "mel_bias");
  require_shape(rest[6], {c}, "done");
  require_shape(rest[7], {}, "done_bias");
  return d;
}

std::unique_ptr<Decoder> make_decoder(const std::vector<Floats>& prenet,
                                      const std::vector<Floats>& rest,
                                      const std::vector<int>& attention_layers, int window,
                                      int max_hold, const std::string& precision,
                                      const std::string& isa) {
  const DecoderDims dims = dims_of(prenet, rest, attention_layers, window, max_hold);
  DecoderWeights w{};
  for (size_t i = 0; i < prenet.size(); ++i) w.prenet[i] = prenet[i].data();
  w.enter = rest[0].data(), w.elapsed = rest[1].data(), w.convs = rest[2].data();
  w.conv_bias = rest[3].data(), w.mel = rest[4].data(), w.mel_bias = rest[5].data();
  w.done = rest[6].data(), w.done_bias = *rest[7].data();
  return std::make_unique<Decoder>(dims, w, precision_of(precision), isa.c_str());
}

// inputs: attended, speaker, folded_keys, key_bias, folded_values of DecoderInputs.
void check_inputs(const DecoderDims& d, const std::vector<Floats>& prenet_bias,
                  const std::vector<Floats>& inputs, const Ints& lengths) {
  require(prenet_bias.size() == static_cast<size_t>(d.prenet_layers), "prenet_bias: one a layer");
  require(inputs.size() == 5 && inputs[0].ndim() == 3, "attended: need [batch, symbols, C]");
  const int64_t batch = inputs[0].shape(0), symbols = inputs[0].shape(1), c = d.channels;
  const int64_t attentions = d.attention_layers;
  for (int i = 0; i < d.prenet_layers; ++i) {
    require_shape(prenet_bias[i], {batch, d.prenet[i]}, "prenet_bias");
  }
  require_shape(inputs[0], {batch, symbols, c}, "attended");
  require_shape(inputs[1], {batch, d.layers, c}, "speaker");
  require_shape(inputs[2], {attentions, batch, symbols, c}, "folded_keys");
  require_shape(inputs[3], {attentions, batch, symbols}, "key_bias");
  require_shape(inputs[4], {attentions, batch, symbols, c}, "folded_values");
  require_shape(lengths, {batch}, "lengths");
  for (int64_t n = 0; n < batch; ++n) {
    require(lengths.data()[n] > 0 && lengths.data()[n] <= symbols, "lengths: need 1 to symbols");
  }
}

void generate(const Decoder& net, const std::vector<Floats>& prenet_bias,
              const std::vector<Floats>& inputs, const Ints& lengths, Floats mel, Floats history,
              Ints position, Ints elapsed, Bools finished, Floats hidden, Ints path, Ints count) {
  const DecoderDims& d = net.dims();
  check_inputs(d, prenet_bias, inputs, lengths);
  require(hidden.ndim() == 3, "hidden: need [batch, steps, C]");
  const int64_t batch = inputs[0].shape(0), symbols = inputs[0].shape(1), c = d.channels;
  const int64_t steps = hidden.shape(1), past = c * (d.kernel_size - 1);
  require_shape(mel, {batch, d.mel}, "state.mel");
  require_shape(history, {batch, d.layers, c, d.kernel_size - 1}, "state.history");
  require_shape(position, {batch}, "state.position");
  require_shape(elapsed, {batch}, "state.elapsed");
  require_shape(finished, {batch}, "state.finished");
  require_shape(hidden, {batch, steps, c}, "hidden");
  require_shape(path, {batch, steps}, "path");
  require_shape(count, {batch}, "count");
  std::vector<DecoderStream> streams(static_cast<size_t>(batch));
  for (int64_t n = 0; n < batch; ++n) {
    DecoderStream& s = streams[n];
    for (int i = 0; i < d.prenet_layers; ++i) {
      s.prenet_bias[i] = prenet_bias[i].data() + n * d.prenet[i];
    }
    s.attended = inputs[0].data() + n * symbols * c;
    s.speaker = inputs[1].data() + n * d.layers * c;
    for (int a = 0; a < d.attention_layers; ++a) {
      const int64_t row = (a * batch + n) * symbols;
      s.keys[a] = inputs[2].data() + row * c;
      s.key_bias[a] = inputs[3].data() + row;
      s.values[a] = inputs[4].data() + row * c;
    }
    s.length = lengths.data()[n];
    s.mel = mel.mutable_data() + n * d.mel;
    s.history = history.mutable_data() + n * d.layers * past;
    s.position = position.mutable_data() + n;
    s.elapsed = elapsed.mutable_data() + n;
    s.finished = finished.mutable_data() + n;
    s.hidden = hidden.mutable_data() + n * steps * c;
    s.path = path.mutable_data() + n * steps;
    require(*s.position >= 0 && *s.position < s.length, "state.position lies outside the text");
    require(*s.elapsed >= 0, "state.elapsed is negative");
  }
  bool worked;
  {
    py::gil_scoped_release release;
    worked = net.generate(streams.data(), static_cast<int>(batch), steps);
  }
  if (!worked) throw std::bad_alloc();
  for (int64_t n = 0; n < batch; ++n) count.mutable_data()[n] = streams[n].count;
}

}  // namespace

void bind_decoder(py::module_& m) {
  py::class_<Decoder>(m, "Decoder")
      .def(py::init(&make_decoder), py::arg("prenet"), py::arg("rest"), py::arg("attention_layers"),
           py::arg("window"), py::arg("max_hold"), py::arg("precision"), py::arg("isa"))
      .def_property_readonly("isa", [](const Decoder& net) { return std::string(net.isa()); })
      .def_property_readonly("packed_bytes", &Decoder::packed_bytes)
      .def("generate", &generate, py::arg("prenet_bias"), py::arg("inputs"), py::arg("lengths"),
           py::arg("mel").noconvert(), py::arg("history").noconvert(),
           py::arg("position").noconvert(), py::arg("elapsed").noconvert(),
           py::arg("finished").noconvert(), py::arg("hidden").noconvert(),
           py::arg("path").noconvert(), py::arg("count").noconvert());
}
