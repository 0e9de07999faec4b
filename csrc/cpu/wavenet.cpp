// Owns packed weights and picks the instruction set; the work is in wavenet_isa.h.
#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "../ops.h"
#include "../split.h"

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

static bool all_halves(const WaveNetDims& d, const WaveNetWeights& w) {
  const size_t layers = d.layers, r = d.residual_channels, s = d.skip_channels;
  return all_halves(w.gates, layers * 4 * r * r) && all_halves(w.residuals, layers * r * r) &&
         all_halves(w.skips, layers * s * r) && all_halves(w.hidden, s * s) &&
         all_halves(w.outputs, d.outputs * s);
}

WaveNet::WaveNet(const WaveNetDims& dims, const WaveNetWeights& weights, Precision precision,
                 const char* isa)
    : dims_(dims), precision_(precision), isa_(find_isa(isa)) {
  if (precision == Precision::kFloat32 && isa_->halves && all_halves(dims, weights)) {
    precision_ = Precision::kHalf;
  }
  dilations_ = new int[dims.layers];
  std::copy(dims.dilations, dims.dilations + dims.layers, dilations_);
  dims_.dilations = dilations_;
  packed_bytes_ = isa_->pack(dims_, weights, precision_, nullptr);
  packed_ = static_cast<uint8_t*>(::operator new(packed_bytes_, std::align_val_t(kAlignment)));
  isa_->pack(dims_, weights, precision_, packed_);
}

WaveNet::~WaveNet() {
  ::operator delete(packed_, std::align_val_t(kAlignment));
  delete[] dilations_;
}

const char* WaveNet::isa() const { return isa_->name; }

namespace {

struct FollowCall {
  const Isa* isa;
  const WaveNetDims* dims;
  const uint8_t* packed;
  Precision precision;
  WaveNetStream stream;
  int64_t steps;
  Exchange* exchange;
};

void follow(void* data) {
  const FollowCall& c = *static_cast<FollowCall*>(data);
  c.isa->follow(*c.dims, c.packed, c.precision, &c.stream, c.steps, c.exchange);
}

}  // namespace

// In segments: the peer, lost while others used its core, is asked again at each. False if there was
// no memory, and nothing was done.
bool WaveNet::generate_split(const WaveNetStream& stream, int64_t steps) const noexcept {
  const std::align_val_t aligned{kAlignment};
  void* block = ::operator new(exchange_bytes(dims_), aligned, std::nothrow);
  if (block == nullptr) return false;
  Exchange exchange;
  lay_out(&exchange, dims_, block);
  int64_t follower_step = *stream.step;
  FollowCall call{isa_, &dims_, packed_, precision_, stream, steps, &exchange};
  call.stream.step = &follower_step;
  const bool helped = start_on_peer(follow, &call);
  if (helped) {
    isa_->lead(dims_, packed_, precision_, &stream, steps, &exchange);
    wait_for_peer();
  } else {
    isa_->generate(dims_, packed_, precision_, &stream, 1, steps);
  }
  ::operator delete(block, aligned);
  return true;
}

void WaveNet::generate(const WaveNetStream* streams, int batch, int64_t band_steps,
                       int cores) const noexcept {
  if (cores > 1 && batch == 1 && generate_split(streams[0], band_steps)) return;
  isa_->generate(dims_, packed_, precision_, streams, batch, band_steps);
}

}  // namespace clonewave
