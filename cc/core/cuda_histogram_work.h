// What the CUDA kernels of histograms do; see cuda_work.h. Counts are integers: so they are the same whatever
// order the threads' atomic additions come in.
#ifndef DQAT_CORE_CUDA_HISTOGRAM_WORK_H_
#define DQAT_CORE_CUDA_HISTOGRAM_WORK_H_

#include <cstdint>

#include "core/cuda_work.h"
#include "core/histogram.h"
#include "core/histogram_search.h"

namespace dqat::core::cuda {

DQAT_HOST_DEVICE inline void AtomicAdd(uint32_t* sum, uint32_t value) {
#ifdef __CUDA_ARCH__
  atomicAdd(sum, value);
#else
  *sum += value;
#endif
}

DQAT_HOST_DEVICE inline void AtomicAdd(int64_t* sum, uint32_t value) {
#ifdef __CUDA_ARCH__
  // Two's complement: the sum has the same bits.
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
#else
  *sum += value;
#endif
}

// A block's counts, in shared memory; the last is of values in no bin. Even of a tensor of 2^41 elements a
// block has fewer than 2^32 (Plan::kWantedBlocks).
constexpr int kTallySize = HistogramGrid::kBins + 1;

// `Work`, a FakeQuantWork or MinMaxWork per tensor, that also counts.
template <typename Work>
struct CountWork : Work {
  uint32_t* tally;
  // Counted apart: behind a ReLU half of all values are 0, and additions to one place wait for each other.
  uint32_t tiny = 0;

  DQAT_HOST_DEVICE CountWork(const Work& work, uint32_t* tally) : Work(work), tally(tally) {}

  DQAT_HOST_DEVICE void Use(int64_t offset, const typename Work::Value& input, Pair* found) {
    Work::Use(offset, input, found);
    const int bin = HistogramGrid::Bin(static_cast<float>(input));
    if (bin == HistogramGrid::kSideBins) {
      ++tiny;
    } else {
      AtomicAdd(tally + bin, 1);
    }
  }
  DQAT_HOST_DEVICE void Finish() {
    if (tiny > 0) AtomicAdd(tally + HistogramGrid::kSideBins, tiny);
  }
};

// RunBlocks with a tally, which is then added to counts[kBins].
template <typename Block, typename Work>
DQAT_HOST_DEVICE void CountBlocks(Block& block, int64_t first_block, int64_t grid_size, const Plan& plan,
                                  const Work& work, Pairs partials, uint32_t* tally, int64_t* counts) {
  block.ForEachThread([&](int thread) {
    for (int bin = thread; bin < kTallySize; bin += Plan::kThreads) tally[bin] = 0;
  });
  block.Synchronize();
  RunBlocks(block, first_block, grid_size, plan, CountWork<Work>(work, tally), partials);
  block.Synchronize();
  block.ForEachThread([&](int thread) {
    for (int bin = thread; bin < HistogramGrid::kBins; bin += Plan::kThreads) {
      if (tally[bin] > 0) AtomicAdd(counts + bin, tally[bin]);
    }
  });
}

// A histogram with the extremes of its values, in device memory.
struct Histogram {
  const int64_t* counts;
  const float *min, *max;

  DQAT_HOST_DEVICE Range extremes() const { return {*min, *max}; }
  DQAT_HOST_DEVICE bool extremes_are_valid() const {
    const Range range = extremes();
    return IsValid(range) && (range.empty() || (range.min <= 0.0f && range.max >= 0.0f));
  }
};

// One block's threads find the range between two percentiles; NaN for wrong arguments. `sums` is
// [PercentileSearch::kSegments], in memory that the block shares; a negative sum stands for a negative count.
template <typename Block>
DQAT_HOST_DEVICE void FindPercentiles(Block& block, const Histogram& histogram, const double* lower,
                                      const double* upper, double* sums, Pairs range) {
  static_assert(PercentileSearch::kSegments <= Plan::kThreads, "one segment a thread");
  const PercentileSearch search{histogram.counts};
  block.ForEachThread([&](int thread) {
    if (thread < PercentileSearch::kSegments) {
      sums[thread] = search.HasNegative(thread) ? -1.0 : search.SegmentSum(thread);
    }
  });
  block.Synchronize();
  block.ForEachThread([&](int thread) {
    if (thread != 0) return;
    bool valid =
        histogram.extremes_are_valid() && *lower >= 0.0 && *lower < 50.0 && *upper > 50.0 && *upper <= 100.0;
    for (int segment = 0; segment < PercentileSearch::kSegments; ++segment)
      valid = valid && sums[segment] >= 0.0;
    Range found{kNan, kNan};
    if (valid) found = search.Run(sums, histogram.extremes(), *lower, *upper);
    range.Set(0, {found.min, found.max});
  });
}

// The error of a grid, shared out over a block's threads. Its bits are not the CPU's, whose sum is in another
// order: of two ranges with nearly the same error, CPU and GPU may take different ones.
template <typename Block>
class BlockErrorModel {
 public:
  DQAT_HOST_DEVICE BlockErrorModel(Block& block, const int64_t* counts, const Range& extremes)
      : block_(block), counts_(counts), extremes_(extremes) {}

  DQAT_HOST_DEVICE double Error(const Grid& grid) {
    typename Block::template PerThread<double> shares;
    block_.ForEachThread([&](int thread) {
      double share = 0.0;
      for (int bin = thread; bin < HistogramGrid::kBins; bin += Plan::kThreads) {
        // Tiny values become 0 on any grid.
        if (counts_[bin] == 0 || bin == HistogramGrid::kSideBins) continue;
        const BinInterval interval(bin, extremes_);
        const double density = static_cast<double>(counts_[bin]) / interval.width;
        share += density * (SquaredErrorIntegral(interval.low + interval.width, grid) -
                            SquaredErrorIntegral(interval.low, grid));
      }
      shares[thread] = share;
    });
    return block_.SumForAll(shares);
  }

 private:
  Block& block_;
  const int64_t* counts_;
  const Range extremes_;
};

// One block's threads search MinimumErrorRange together: all follow the same path, and share the sum in each
// error. NaN for wrong arguments. `Block` has here also SumForAll(shares), the sum of doubles, for all
// threads.
template <typename Block>
DQAT_HOST_DEVICE void FindMinimumError(Block& block, const Histogram& histogram, const QuantizerSpec& spec,
                                       Pairs range) {
  typename Block::template PerThread<double> negatives;
  block.ForEachThread([&](int thread) {
    negatives[thread] = 0.0;
    for (int bin = thread; bin < HistogramGrid::kBins; bin += Plan::kThreads) {
      if (histogram.counts[bin] < 0) negatives[thread] += 1.0;
    }
  });
  const bool valid = block.SumForAll(negatives) == 0.0 && histogram.extremes_are_valid();
  Range found{kNan, kNan};
  if (valid) {
    found = histogram.extremes();
    BlockErrorModel<Block> model(block, histogram.counts, found);
    if (!found.empty()) found = ErrorSearch<BlockErrorModel<Block>>(model, found, spec).Run();
  }
  block.ForEachThread([&](int thread) {
    if (thread == 0) range.Set(0, {found.min, found.max});
  });
}

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_HISTOGRAM_WORK_H_
