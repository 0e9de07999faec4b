// Compiled with -mavx2 -mfma -mf16c.
#include "vec_avx2.h"
#include "wavenet_isa.h"
#include "split_isa.h"

#include "decoder_isa.h"

static bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}
extern const clonewave::Isa kAvx2{"avx2", runs_here, kHalves, pack, generate, lead, follow,
                                     pack_decoder, generate_decoder};
