#include "core/streaming.h"

#include <atomic>
#include <fstream>
#include <limits>

namespace dqat::core {
namespace {

// From Linux, which asks the processor for the cache that its cores share; sysconf may give the sum of all
// such caches of a socket.
int64_t LastLevelCacheBytes() {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");
  int64_t kilobytes = 0;
  char unit = 0;
  if (file >> kilobytes >> unit && kilobytes > 0 && unit == 'K') return kilobytes * 1024;
  return std::numeric_limits<int64_t>::max();
}

std::atomic<int64_t>& Current() {
  static std::atomic<int64_t> current{LastLevelCacheBytes()};
  return current;
}

}  // namespace

int64_t StreamingBytes() { return Current().load(std::memory_order_relaxed); }
void SetStreamingBytes(int64_t bytes) { Current().store(bytes, std::memory_order_relaxed); }

}  // namespace dqat::core
