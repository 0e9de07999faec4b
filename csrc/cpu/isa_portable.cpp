// Any machine.
#include "vec_portable.h"
#include "wavenet_isa.h"
#include "split_isa.h"

#include "decoder_isa.h"

static bool runs_here() { return true; }
extern const clonewave::Isa kPortable{"scalar", runs_here, kHalves, pack, generate, lead, follow,
                                     pack_decoder, generate_decoder};
