// Ranges from histograms. Counts may be in any unit: only their ratios matter. Everything is computed from
// integers in float64, one after the other: the same counts give the same bits.
#ifndef DQAT_CORE_HISTOGRAM_RANGE_H_
#define DQAT_CORE_HISTOGRAM_RANGE_H_

#include <cstdint>

#include "core/histogram.h"
#include "core/quantization.h"

namespace dqat::core {

// From the `lower` to the `upper` percentile, outwards to the next bin edges: at most lower % of the values
// lie below the range and at most (100 - upper) % above. Never wider than `extremes`, the exact smallest and
// largest value; those where nothing was counted.
Range PercentileRange(const int64_t* counts, const Range& extremes, double lower, double upper);

// The range whose grid gives the smallest expected squared error, values lying evenly in their bins: the L2
// criterion of Sung, Shin and Hwang, "Resiliency of Deep Neural Networks under Quantization", 2015.
//
// An end of the range is the exact extreme or one of the kMinimumErrorEdges bin edges inside it. A symmetric
// quantizer has one end to search; else both ends are drawn in together first and then one at a time, as
// long as the error falls. A scan looks at every fourth edge, then around the best.
// The result is not fitted yet: the error is that of FitRange(result, spec). `extremes` contains 0.
Range MinimumErrorRange(const int64_t* counts, const Range& extremes, const QuantizerSpec& spec);

constexpr int kMinimumErrorEdges = 8 << HistogramGrid::kMantissaBits;  // eight octaves

}  // namespace dqat::core

#endif  // DQAT_CORE_HISTOGRAM_RANGE_H_
