// Owns packed weights and picks the instruction set; the work is in wavenet_isa.h.
#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "../ops.h"

extern const clonewave::Isa kPortable;
#ifdef CLONEWAVE_X86
extern const clonewave::Isa kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16;
#endif

namespace clonewave {

const Isa* const kIsas[] = {
#ifdef CLONEWAVE_X86
    &kAvx512Bf16, &kAvx512Vnni, &kAvx512, &kAvx2,
#endif
    &kPortable};
const int kIsaCount = sizeof(kIsas) / sizeof(kIsas[0]);

const Isa* find_isa(const char* wanted) {
  const std::string name = wanted;
  for (const Isa* isa : kIsas) {
    if (name == isa->name) {
      if (!isa->runs_here()) throw std::invalid_argument("this machine cannot run " + name);
      return isa;
    }
  }
  throw std::invalid_argument("no code for instruction set " + name);
}

WaveNet::WaveNet(const WaveNetDims& dims, const WaveNetWeights& weights, Precision precision,
                 const char* isa)
    : dims_(dims), precision_(precision), isa_(find_isa(isa)) {
  dilations_ = new int[dims.layers];
  std::copy(dims.dilations, dims.dilations + dims.layers, dilations_);
  dims_.dilations = dilations_;
  packed_bytes_ = isa_->pack(dims_, weights, precision, nullptr);
  packed_ = static_cast<uint8_t*>(::operator new(packed_bytes_, std::align_val_t(kAlignment)));
  isa_->pack(dims_, weights, precision, packed_);
}

WaveNet::~WaveNet() {
  ::operator delete(packed_, std::align_val_t(kAlignment));
  delete[] dilations_;
}

const char* WaveNet::isa() const { return isa_->name; }

void WaveNet::generate(const WaveNetStream* streams, int batch, int64_t band_steps) const noexcept {
  isa_->generate(dims_, packed_, precision_, streams, batch, band_steps);
}

}  // namespace clonewave
