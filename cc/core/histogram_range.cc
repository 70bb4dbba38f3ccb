#include "core/histogram_range.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace dqat::core {
namespace {

double Cube(double x) { return x * x * x; }

// Squared quantization errors of a histogram. With an antiderivative G of the squared error of a value, and
// the density of a bin, the error is the sum over the bins of density * (G(high) - G(low)); collected by
// edges, each edge has the density on its left less that on its right as a factor.
class ErrorModel {
 public:
  ErrorModel(const int64_t* counts, const Range& extremes) {
    double right = 0.0;  // density between the last edge and the next
    for (int bin = 0; bin < HistogramGrid::kBins; ++bin) {
      // Tiny values become 0 on any grid.
      if (counts[bin] == 0 || bin == HistogramGrid::kSideBins) continue;
      const double low = std::max(HistogramGrid::Low(bin), extremes.min);
      const double high = std::min(HistogramGrid::High(bin), extremes.max);
      // A bin that the extremes cut down to a point keeps a width, far below any step.
      const double width = std::max(high - low, 1e-9 * std::fabs(low));
      if (edges_.empty() || edges_.back() != low) {
        if (!edges_.empty()) factors_.back() = right;
        right = 0.0;
        edges_.push_back(low);
        factors_.push_back(0.0);
      }
      const double density = static_cast<double>(counts[bin]) / width;
      factors_.back() = right - density;
      right = density;
      edges_.push_back(low + width);
      factors_.push_back(density);
    }
    while (edges_.size() % kLanes != 0) {
      edges_.push_back(0.0);
      factors_.push_back(0.0);
    }
  }

  double Error(const Grid& grid) const {
    double sums[kLanes] = {};
    for (size_t i = 0; i < edges_.size(); i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        sums[lane] += factors_[i + lane] * Integral(edges_[i + lane], grid);
      }
    }
    double error = 0.0;
    for (const double sum : sums) error += sum;
    return error;
  }

 private:
  static constexpr size_t kLanes = 4;

  // An antiderivative of the squared error (x - quantized x)^2. Levels are the multiples of the scale
  // between the nudged ends; so the error is that of rounding inside and that of clipping outside.
  static double Integral(double x, const Grid& grid) {
    const double low = grid.nudged_min, high = grid.nudged_max, scale = grid.scale;
    const double steps = std::min(std::max(x, low), high) / scale;
    // Rounds to an integer. Which one halves go to makes no difference to the integral.
    constexpr double kRounder = 6755399441055744.0;  // 1.5 * 2^52
    const double whole = (steps + kRounder) - kRounder;
    const double rounding = Cube(scale) * (whole / 12.0 + Cube(steps - whole) / 3.0);
    return rounding + (Cube(std::min(x, low) - low) + Cube(std::max(x, high) - high)) / 3.0;
  }

  std::vector<double> edges_, factors_;
};

// The places where one end of the range may stand: place 0 is the extreme, the others are edges inward.
class End {
 public:
  explicit End(float extreme) : extreme_(extreme), level_(HistogramGrid::Level(extreme)) {}

  int last() const { return std::min(level_, kMinimumErrorEdges); }
  float At(int place) const {
    place = std::min(place, last());
    if (place == 0) return extreme_;
    return std::copysign(HistogramGrid::Edge(level_ - place + 1), extreme_);
  }

 private:
  float extreme_;
  int level_;
};

class Search {
 public:
  Search(const int64_t* counts, const Range& extremes, const QuantizerSpec& spec)
      : model_(counts, extremes), spec_(spec), low_(extremes.min), high_(extremes.max) {}

  Range Run() {
    Try(0, 0);
    Scan(std::max(low_.last(), high_.last()), [this](int place) { Try(place, place); });
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
  void Try(int low_place, int high_place) {
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
  void Scan(int last, TryPlace try_place) {
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
    for (int place = std::max(0, around - kStride + 1); place <= std::min(last, around + kStride - 1);
         ++place) {
      if (place != around) visit(place);
    }
  }

  const ErrorModel model_;
  const QuantizerSpec spec_;
  const End low_, high_;
  int low_place_ = 0, high_place_ = 0;
  double error_ = std::numeric_limits<double>::infinity();
  bool improved_ = false;
};

}  // namespace

Range PercentileRange(const int64_t* counts, const Range& extremes, double lower, double upper) {
  double total = 0.0;
  for (int bin = 0; bin < HistogramGrid::kBins; ++bin) total += static_cast<double>(counts[bin]);
  if (extremes.empty() || total == 0.0) return extremes;
  // 0.1 % of 1000 values is one value, whatever float64 makes of 0.1.
  constexpr double kRoundingOfPercents = 1.0 + 1e-9;
  const double below = std::floor(total * lower / 100.0 * kRoundingOfPercents);
  const double above = std::floor(total * (100.0 - upper) / 100.0 * kRoundingOfPercents);
  int first = 0, last = HistogramGrid::kBins - 1;
  for (double passed = counts[first]; passed <= below; passed += counts[++first]) {
  }
  for (double passed = counts[last]; passed <= above; passed += counts[--last]) {
  }
  return {std::max(extremes.min, HistogramGrid::Low(first)),
          std::min(extremes.max, HistogramGrid::High(last))};
}

Range MinimumErrorRange(const int64_t* counts, const Range& extremes, const QuantizerSpec& spec) {
  if (extremes.empty()) return extremes;
  return Search(counts, extremes, spec).Run();
}

}  // namespace dqat::core
