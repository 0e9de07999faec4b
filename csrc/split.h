// What two cores share while they generate one stream; see csrc/cpu/split_isa.h.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "wavenet.h"

namespace clonewave {

// Counters have a cache line each: one core writes it, the other waits for it.
constexpr int64_t kNoMoreTerms = INT64_MAX;

struct alignas(kAlignment) SharedCount {
  int64_t value;
};

// The follower may join and be left several times in a call: its terms, numbered from 1. Steps are
// counted from the one at which a term began; buffers hold two of them in turn.
struct Exchange {
  SharedCount ready;   // term that the follower can begin
  SharedCount start;   // 1 + step of the call at which it does, 0 = not yet
  SharedCount quit;    // term that is over; kNoMoreTerms: the follower returns
  SharedCount sent;   // layers whose gates and inputs are there, by the leader
  SharedCount ahead;  // layers whose `past` is there, by the follower
  SharedCount summed;  // steps whose `skip` is there, by the follower
  float* past;        // [2][layers][2R], conditioning and past of the gates
  float* skip;        // [2][S], the skip sum without the last layers
  uint8_t* gated;     // [2][layers][gated_bytes], gate outputs as the skip products read them
  size_t gated_bytes;
};

// Bytes of an Exchange's buffers, and the Exchange over a block of so many, kAlignment aligned.
size_t exchange_bytes(const WaveNetDims& dims) noexcept;
void lay_out(Exchange* exchange, const WaveNetDims& dims, void* block) noexcept;

// One more thread for the whole process, started when first asked for and kept, asleep.
// Starts work(data) there and returns true, or false if it is busy, or cannot be had.
bool start_on_peer(void (*work)(void*), void* data) noexcept;
// Waits until that work has returned. Call it once after every start that was true.
void wait_for_peer() noexcept;

}  // namespace clonewave
