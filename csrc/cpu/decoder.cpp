// Owns packed decoder weights and picks the instruction set; the work is in decoder_isa.h.
#include <algorithm>
#include <new>

#include "../ops.h"

namespace clonewave {

Decoder::Decoder(const DecoderDims& dims, const DecoderWeights& weights, Precision precision,
                 const char* isa)
    : dims_(dims), precision_(precision), isa_(find_isa(isa)) {
  packed_bytes_ = isa_->pack_decoder(dims_, weights, precision, nullptr);
  if (packed_bytes_ == 0) throw std::bad_alloc();
  packed_ = static_cast<uint8_t*>(::operator new(packed_bytes_, std::align_val_t(kAlignment)));
  if (isa_->pack_decoder(dims_, weights, precision, packed_) == 0) {
    ::operator delete(packed_, std::align_val_t(kAlignment));
    throw std::bad_alloc();
  }
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
