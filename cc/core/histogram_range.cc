#include "core/histogram_range.h"

#include <cstddef>
#include <vector>

#include "core/histogram_search.h"

namespace dqat::core {
namespace {

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
      const BinInterval interval(bin, extremes);
      if (edges_.empty() || edges_.back() != interval.low) {
        if (!edges_.empty()) factors_.back() = right;
        right = 0.0;
        edges_.push_back(interval.low);
        factors_.push_back(0.0);
      }
      const double density = static_cast<double>(counts[bin]) / interval.width;
      factors_.back() = right - density;
      right = density;
      edges_.push_back(interval.low + interval.width);
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
        sums[lane] += factors_[i + lane] * SquaredErrorIntegral(edges_[i + lane], grid);
      }
    }
    double error = 0.0;
    for (const double sum : sums) error += sum;
    return error;
  }

 private:
  static constexpr size_t kLanes = 4;

  std::vector<double> edges_, factors_;
};

}  // namespace

Range PercentileRange(const int64_t* counts, const Range& extremes, double lower, double upper) {
  const PercentileSearch search{counts};
  double sums[PercentileSearch::kSegments];
  for (int segment = 0; segment < PercentileSearch::kSegments; ++segment) {
    sums[segment] = search.SegmentSum(segment);
  }
  return search.Run(sums, extremes, lower, upper);
}

Range MinimumErrorRange(const int64_t* counts, const Range& extremes, const QuantizerSpec& spec) {
  if (extremes.empty()) return extremes;
  const ErrorModel model(counts, extremes);
  return ErrorSearch(model, extremes, spec).Run();
}

}  // namespace dqat::core
