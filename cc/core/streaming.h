// Results that are too large for any cache to keep until they are read again go past the caches: an ordinary
// store would read each line from memory before it is overwritten, a third of the traffic of one array read
// and one written. Same bits.
#ifndef DQAT_CORE_STREAMING_H_
#define DQAT_CORE_STREAMING_H_

#include <cstdint>

namespace dqat::core {

// Results of more bytes are streamed: the size of the last-level cache; where it is unknown, none are.
int64_t StreamingBytes();
// For tests and benchmarks.
void SetStreamingBytes(int64_t bytes);

}  // namespace dqat::core

#endif  // DQAT_CORE_STREAMING_H_
