// Histograms on one fixed grid of bins that every tensor, block and replica shares.
//
// A bin is the sign, the exponent and the five upper bits of the mantissa of a float32: bins are 2% to 3% of
// their value wide, from 2^-24 to 2^16. There is nothing to agree on before counting, and counts are
// integers: so their sum over blocks or replicas is exact in any order.
//
// Bins stand in the order of their values:
//
//   0 .. kSideBins - 1                 negative values, the largest magnitude first
//   kSideBins                          |x| < 2^-24, zero included
//   kSideBins + 1 .. 2 * kSideBins     positive values, the largest last
//
// The two outermost bins hold what lies beyond 2^16 too. A NaN or an Inf is in no bin.
#ifndef DQAT_CORE_HISTOGRAM_H_
#define DQAT_CORE_HISTOGRAM_H_

#include <cstdint>

#include "core/layout.h"

namespace dqat::core {

struct HistogramGrid {
  static constexpr int kMantissaBits = 5;
  static constexpr int kMinExponent = -24;
  static constexpr int kMaxExponent = 15;
  static constexpr int kSideBins = (kMaxExponent - kMinExponent + 1) << kMantissaBits;
  static constexpr int kBins = 2 * kSideBins + 1;

  // The distance of a value's bin from the middle one: 0 for tiny values, to kSideBins. `x` is finite.
  static int Level(float x);
  // The smallest magnitude at a level from 1 on; +inf past the last.
  static float Edge(int level);
  // The interval of a bin.
  static float Low(int bin);
  static float High(int bin);
};

// Adds the values of one block to counts[kBins]. The layout is per tensor (one channel).
void CountBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const float* x,
                int64_t* counts);

}  // namespace dqat::core

#endif  // DQAT_CORE_HISTOGRAM_H_
