// The smallest and largest value of a row, and whether a NaN or an Inf is among them, from three extremes of
// the values' bits: half the operations that comparing floats takes. Positive floats are in the order of
// their bits, negative ones in the reverse order and, to unsigned numbers, above the positive ones; NaN and
// Inf are outermost.
//
// For files that are compiled once per instruction set: see rows.h.
#ifndef DQAT_CORE_EXTREMES_H_
#define DQAT_CORE_EXTREMES_H_

#include <stdint.h>

#include "core/element.h"
#include "core/small_floats.h"

namespace dqat::core {
namespace {  // each instruction set compiles its own copy

constexpr int32_t kNoHighest = INT32_MIN;
constexpr uint32_t kNoLowest = 0, kNoNearest = UINT32_MAX;

struct BitExtremes {
  int32_t highest;
  uint32_t lowest, nearest;
};

// Of at least one value, whose activation is what is recorded.
inline void MergeExtremes(const BitExtremes& found, Activation activation, float* min, float* max) {
  constexpr uint32_t kSign = 0x80000000u, kInfinityBits = 0x7f800000u;
  // The largest of negative values, and the smallest of positive ones, is the nearest to 0.
  const uint32_t largest = found.highest < 0 ? found.nearest : static_cast<uint32_t>(found.highest);
  const uint32_t smallest = found.lowest < kSign ? found.nearest : found.lowest;
  const bool has_nan =
      found.highest > static_cast<int32_t>(kInfinityBits) || found.lowest > (kSign | kInfinityBits);
  // Activations rise: that of the extremes are the extremes of it.
  const float low = Activate(FloatOfBits(smallest), activation);
  const float high = Activate(FloatOfBits(largest), activation);
  const bool bad = has_nan || low - low != 0.0f || high - high != 0.0f;
  const float record_min = bad ? -__builtin_inff() : low;
  const float record_max = bad ? __builtin_inff() : high;
  *min = record_min < *min ? record_min : *min;
  *max = record_max > *max ? record_max : *max;
}

}  // namespace
}  // namespace dqat::core

#endif  // DQAT_CORE_EXTREMES_H_
