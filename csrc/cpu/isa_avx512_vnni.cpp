// Compiled with the flags of isa_avx512.cpp and -mavx512vnni.
#include "vec_avx512.h"
#include "wavenet_isa.h"
#include "split_isa.h"

#include "decoder_isa.h"

static bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
extern const clonewave::Isa kAvx512Vnni{"avx512_vnni", runs_here, kHalves, pack, generate, lead, follow,
                                     pack_decoder, generate_decoder};
