// Compiled with -mavx2 -mfma.
#include "vec_avx2.h"
#include "wavenet_isa.h"

#include "decoder_isa.h"

static bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
extern const clonewave::Isa kAvx2{"avx2", runs_here, pack, generate,
                                     pack_decoder, generate_decoder};
