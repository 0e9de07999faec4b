// Compiled with the flags of isa_avx512_vnni.cpp and -mavx512bf16.
#include "vec_avx512.h"
#include "wavenet_isa.h"
#include "split_isa.h"

#include "decoder_isa.h"

static bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
extern const clonewave::Isa kAvx512Bf16{"avx512_bf16", runs_here, kHalves, pack, generate, lead, follow,
                                     pack_decoder, generate_decoder};
