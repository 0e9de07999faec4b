// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl.
#include "vec_avx512.h"
#include "wavenet_isa.h"
#include "split_isa.h"

#include "decoder_isa.h"

static bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
extern const clonewave::Isa kAvx512{"avx512", runs_here, kHalves, pack, generate, lead, follow,
                                     pack_decoder, generate_decoder};
