// Owns packed decoder weights and picks the instruction set; the work is in decoder_isa.h.
#include <algorithm>
#include <new>

#include "../ops.h"

namespace clonewave {

static bool all_halves(const DecoderDims& d, const DecoderWeights& w) {
  const size_t c = d.channels;
  size_t width = d.mel;
  for (int i = 0; i < d.prenet_layers; width = d.prenet[i++]) {
    if (!all_halves(w.prenet[i], d.prenet[i] * width)) return false;
  }
  return all_halves(w.enter, c * width) && all_halves(w.mel, d.mel * c) &&
         all_halves(w.convs, d.layers * 2 * c * c * d.kernel_size);
}

Decoder::Decoder(const DecoderDims& dims, const DecoderWeights& weights, Precision precision,
                 const char* isa)
    : dims_(dims), precision_(precision), isa_(find_isa(isa)) {
  if (precision == Precision::kFloat32 && isa_->halves && all_halves(dims, weights)) {
    precision_ = Precision::kHalf;
  }
  packed_bytes_ = isa_->pack_decoder(dims_, weights, precision_, nullptr);
  packed_ = static_cast<uint8_t*>(::operator new(packed_bytes_, std::align_val_t(kAlignment)));
  isa_->pack_decoder(dims_, weights, precision_, packed_);
}

Decoder::~Decoder() { ::operator delete(packed_, std::align_val_t(kAlignment)); }

const char* Decoder::isa() const { return isa_->name; }

bool Decoder::generate(DecoderStream* streams, int batch, int64_t steps) const noexcept {
  if (!isa_->generate_decoder(dims_, packed_, packed_bytes_, precision_, streams, batch, steps)) {
    return false;
  }
  int64_t most = 0;
  for (int n = 0; n < batch; ++n) most = std::max(most, streams[n].count);
  for (int n = 0; n < batch; ++n) {
    DecoderStream& s = streams[n];
    std::fill(s.hidden + s.count * dims_.channels, s.hidden + most * dims_.channels, 0.0f);
    std::fill(s.path + s.count, s.path + most, *s.position);
  }
  return true;
}

}  // namespace clonewave
