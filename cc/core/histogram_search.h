// How ranges are searched on a histogram: what histogram_range.cc and the CUDA kernels compile alike.
#ifndef DQAT_CORE_HISTOGRAM_SEARCH_H_
#define DQAT_CORE_HISTOGRAM_SEARCH_H_

#include <math.h>

#include <cstdint>

#include "core/histogram.h"
#include "core/histogram_range.h"
#include "core/host_device.h"
#include "core/quantization.h"

namespace dqat::core {

// A percentile is found in two steps, so that the threads of a GPU can share the first one: the sums of
// kSegments pieces of the histogram, then a walk over the sums and within one piece.
struct PercentileSearch {
  static constexpr int kSegments = 256;
  static constexpr int kSegmentBins = (HistogramGrid::kBins + kSegments - 1) / kSegments;

  const int64_t* counts;

  DQAT_HOST_DEVICE double SegmentSum(int segment) const {
    double sum = 0.0;
    for (int bin = segment * kSegmentBins; bin < SegmentEnd(segment); ++bin) {
      sum += static_cast<double>(counts[bin]);
    }
    return sum;
  }

  DQAT_HOST_DEVICE bool HasNegative(int segment) const {
    bool negative = false;
    for (int bin = segment * kSegmentBins; bin < SegmentEnd(segment); ++bin) negative |= counts[bin] < 0;
    return negative;
  }

  DQAT_HOST_DEVICE Range Run(const double* sums, const Range& extremes, double lower, double upper) const {
    double total = 0.0;
    for (int segment = 0; segment < kSegments; ++segment) total += sums[segment];
    if (extremes.empty() || total == 0.0) return extremes;
    // 0.1 % of 1000 values is one value, whatever float64 makes of 0.1.
    constexpr double kRoundingOfPercents = 1.0 + 1e-9;
    const double below = floor(total * lower / 100.0 * kRoundingOfPercents);
    const double above = floor(total * (100.0 - upper) / 100.0 * kRoundingOfPercents);
    const float low = HistogramGrid::Low(First(sums, below)), high = HistogramGrid::High(Last(sums, above));
    return {extremes.min > low ? extremes.min : low, extremes.max < high ? extremes.max : high};
  }

 private:
  DQAT_HOST_DEVICE static int SegmentEnd(int segment) {
    const int end = (segment + 1) * kSegmentBins;
    return end < HistogramGrid::kBins ? end : HistogramGrid::kBins;
  }

  // The first bin with which more than `skipped` values are passed, from the smallest on.
  DQAT_HOST_DEVICE int First(const double* sums, double skipped) const {
    double passed = 0.0;
    int segment = 0;
    while (segment < kSegments - 1 && passed + sums[segment] <= skipped) passed += sums[segment++];
    int bin = segment * kSegmentBins;
    passed += static_cast<double>(counts[bin]);
    while (bin < HistogramGrid::kBins - 1 && passed <= skipped) passed += static_cast<double>(counts[++bin]);
    return bin;
  }

  // The same from the largest on.
  DQAT_HOST_DEVICE int Last(const double* sums, double skipped) const {
    double passed = 0.0;
    int segment = kSegments - 1;
    while (segment > 0 && passed + sums[segment] <= skipped) passed += sums[segment--];
    int bin = SegmentEnd(segment) - 1;
    passed += static_cast<double>(counts[bin]);
    while (bin > 0 && passed <= skipped) passed += static_cast<double>(counts[--bin]);
    return bin;
  }
};

DQAT_HOST_DEVICE inline double Cube(double x) { return x * x * x; }

// An antiderivative of the squared error (x - quantized x)^2. Levels are the multiples of the scale between
// the nudged ends; so the error is that of rounding inside and that of clipping outside.
DQAT_HOST_DEVICE inline double SquaredErrorIntegral(double x, const Grid& grid) {
  const double low = grid.nudged_min, high = grid.nudged_max, scale = grid.scale;
  const double above_low = x > low ? x : low, inside = above_low < high ? above_low : high;
  const double steps = inside / scale;
  // Rounds to an integer. Which one halves go to makes no difference to the integral.
  constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
  const double whole = (steps + kRounder) - kRounder;
  const double rounding = Cube(scale) * (whole / 12.0 + Cube(steps - whole) / 3.0);
  return rounding + (Cube((x < low ? x : low) - low) + Cube((x > high ? x : high) - high)) / 3.0;
}

// A bin's interval, as far as it lies within the extremes.
struct BinInterval {
  double low, width;

  DQAT_HOST_DEVICE BinInterval(int bin, const Range& extremes) {
    const double first = HistogramGrid::Low(bin), last = HistogramGrid::High(bin);
    low = first > extremes.min ? first : extremes.min;
    const double high = last < extremes.max ? last : extremes.max;
    // A bin that the extremes cut down to a point keeps a width, far below any step.
    const double least = 1e-9 * fabs(low);
    width = high - low > least ? high - low : least;
  }
};

// The places where one end of the range may stand: place 0 is the extreme, the others are edges inward.
class End {
 public:
  DQAT_HOST_DEVICE explicit End(float extreme) : extreme_(extreme), level_(HistogramGrid::Level(extreme)) {}

  DQAT_HOST_DEVICE int last() const { return level_ < kMinimumErrorEdges ? level_ : kMinimumErrorEdges; }
  DQAT_HOST_DEVICE float At(int place) const {
    if (place > last()) place = last();
    if (place == 0) return extreme_;
    return copysignf(HistogramGrid::Edge(level_ - place + 1), extreme_);
  }

 private:
  float extreme_;
  int level_;
};

// The search that MinimumErrorRange describes. `Model` has double Error(const Grid&), the squared error of a
// grid on the histogram.
template <typename Model>
class ErrorSearch {
 public:
  DQAT_HOST_DEVICE ErrorSearch(Model& model, const Range& extremes, const QuantizerSpec& spec)
      : model_(model), spec_(spec), low_(extremes.min), high_(extremes.max) {}

  DQAT_HOST_DEVICE Range Run() {
    Try(0, 0);
    const int farthest = low_.last() > high_.last() ? low_.last() : high_.last();
    Scan(farthest, [this](int place) { Try(place, place); });
    // A symmetric grid knows only the larger end.
    constexpr int kRounds = 3;
    const bool one_end = spec_.symmetric || spec_.power_of_two || low_.last() == 0 || high_.last() == 0;
    for (int round = 0; !one_end && round < kRounds; ++round) {
      const double before = error_;
      const int low = low_place_;
      Scan(high_.last(), [this, low](int place) { Try(low, place); });
      const int high = high_place_;
      Scan(low_.last(), [this, high](int place) { Try(place, high); });
      if (!(error_ < before)) break;
    }
    return {low_.At(low_place_), high_.At(high_place_)};
  }

 private:
  DQAT_HOST_DEVICE void Try(int low_place, int high_place) {
    const Range range = FitRange({low_.At(low_place), high_.At(high_place)}, spec_);
    if (!IsValid(range) || range.min == range.max) return;
    const double error = model_.Error(MakeGrid(range, spec_));
    if (error < error_) {
      error_ = error;
      low_place_ = low_place;
      high_place_ = high_place;
      improved_ = true;
    }
  }

  template <typename TryPlace>
  DQAT_HOST_DEVICE void Scan(int last, TryPlace try_place) {
    constexpr int kStride = 4;
    int best = -1;
    const auto visit = [&](int place) {
      improved_ = false;
      try_place(place);
      if (improved_) best = place;
    };
    for (int place = 0; place <= last; place += kStride) visit(place);
    if (best < 0) return;
    const int around = best;
    for (int place = around - kStride + 1; place < around + kStride; ++place) {
      if (place >= 0 && place <= last && place != around) visit(place);
    }
  }

  Model& model_;
  const QuantizerSpec spec_;
  const End low_, high_;
  int low_place_ = 0, high_place_ = 0;
  double error_ = kInfinity;
  bool improved_ = false;
};

}  // namespace dqat::core

#endif  // DQAT_CORE_HISTOGRAM_SEARCH_H_
