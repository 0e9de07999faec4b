// The second core of a stream: its thread, and the memory both cores share.
#include "../split.h"

#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

#ifdef __unix__
#include <unistd.h>
static long process_id() { return getpid(); }
#else
static long process_id() { return 0; }
#endif

namespace clonewave {
namespace {

size_t padded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// Never destroyed: the thread sleeps in it until the process ends.
struct Peer {
  std::mutex owner;  // held from a start to the wait for it
  std::mutex mutex;
  std::condition_variable changed;
  void (*work)(void*) = nullptr;
  void* data = nullptr;

  void loop() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return work != nullptr; });
      lock.unlock();
      work(data);
      lock.lock();
      work = nullptr;
      changed.notify_all();
    }
  }
};

Peer* peer() noexcept {
  static std::mutex mutex;
  static Peer* made = nullptr;
  static long made_in = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  if (made != nullptr && made_in == process_id()) return made;
  try {  // the first call, or the first of a forked process, where the thread does not exist
    Peer* fresh = new Peer;
    std::thread([fresh] { fresh->loop(); }).detach();
    made = fresh;
    made_in = process_id();
    return made;
  } catch (...) {
    return nullptr;
  }
}

Peer* started = nullptr;  // by the holder of its `owner`

}  // namespace

bool start_on_peer(void (*work)(void*), void* data) noexcept {
  Peer* p = peer();
  if (p == nullptr || !p->owner.try_lock()) return false;
  started = p;
  const std::lock_guard<std::mutex> lock(p->mutex);
  p->data = data;
  p->work = work;
  p->changed.notify_all();
  return true;
}

void wait_for_peer() noexcept {
  Peer* p = started;
  {
    std::unique_lock<std::mutex> lock(p->mutex);
    p->changed.wait(lock, [p] { return p->work == nullptr; });
  }
  p->owner.unlock();
}

size_t exchange_bytes(const WaveNetDims& d) noexcept {
  Exchange none;
  lay_out(&none, d, nullptr);
  const size_t pasts = static_cast<size_t>(2) * d.layers * 2 * d.residual_channels;
  return pasts * sizeof(float) + 2 * padded(d.skip_channels * sizeof(float)) +
         2 * d.layers * none.gated_bytes;
}

void lay_out(Exchange* e, const WaveNetDims& d, void* block) noexcept {
  *e = {};
  const size_t skip = padded(d.skip_channels * sizeof(float)) / sizeof(float);
  e->past = static_cast<float*>(block);
  e->skip = e->past + static_cast<size_t>(2) * d.layers * 2 * d.residual_channels;
  e->gated = reinterpret_cast<uint8_t*>(e->skip + 2 * skip);
  e->gated_bytes = padded(d.residual_channels * sizeof(float)) + kAlignment;
}

}  // namespace clonewave
