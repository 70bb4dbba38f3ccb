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
#include <cstring>

#include "core/host_device.h"
#include "core/layout.h"

namespace dqat::core {

// CPU and CUDA kernels compile its functions alike.
struct HistogramGrid {
  static constexpr int kMantissaBits = 5;
  static constexpr int kMinExponent = -24;
  static constexpr int kMaxExponent = 15;
  static constexpr int kSideBins = (kMaxExponent - kMinExponent + 1) << kMantissaBits;
  static constexpr int kBins = 2 * kSideBins + 1;

  static constexpr int kNowhere = kBins;  // "bin" of a NaN or an Inf

  DQAT_HOST_DEVICE static int Bin(float x) {
    const uint32_t bits = Bits(x), magnitude = bits & 0x7fffffffu;
    const int level = LevelOfBits(magnitude);
    const int bin = kSideBins + (bits >> 31 ? -level : level);
    return magnitude >= 0x7f800000u ? kNowhere : bin;
  }

  // The distance of a value's bin from the middle one: 0 for tiny values, to kSideBins. `x` is finite.
  DQAT_HOST_DEVICE static int Level(float x) { return LevelOfBits(Bits(x) & 0x7fffffffu); }

  // The smallest magnitude at a level from 1 on; +inf past the last.
  DQAT_HOST_DEVICE static float Edge(int level) {
    if (level > kSideBins) return __builtin_inff();
    const uint32_t bits = static_cast<uint32_t>(level - 1 + kFirst) << kDroppedBits;
    float edge;
    memcpy(&edge, &bits, sizeof edge);
    return edge;
  }

  // The interval of a bin.
  DQAT_HOST_DEVICE static float Low(int bin) {
    const int level = bin - kSideBins;
    return level > 0 ? Edge(level) : -Edge(1 - level);
  }
  DQAT_HOST_DEVICE static float High(int bin) { return -Low(2 * kSideBins - bin); }

 private:
  static constexpr int kDroppedBits = 23 - kMantissaBits;
  // What the upper bits of 2^kMinExponent are as an integer.
  static constexpr int kFirst = (127 + kMinExponent) << kMantissaBits;

  DQAT_HOST_DEVICE static uint32_t Bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
  }

  DQAT_HOST_DEVICE static int LevelOfBits(uint32_t magnitude) {
    const int level = static_cast<int>(magnitude >> kDroppedBits) - kFirst + 1;
    const int above = level < 0 ? 0 : level;
    return above > kSideBins ? kSideBins : above;
  }
};

// Adds the values of one block to counts[kBins]. The layout is per tensor (one channel).
template <typename T>
void CountBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const T* x,
                int64_t* counts);

}  // namespace dqat::core

#endif  // DQAT_CORE_HISTOGRAM_H_
