#include "core/histogram.h"

#include "core/small_floats.h"

namespace dqat::core {

template <typename T>
void CountBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const T* x,
                int64_t* counts) {
  const int64_t begin = block * plan.block_elements;
  const int64_t end = std::min(layout.size(), begin + plan.block_elements);
  // Bins first, which vectorises. Neighbours go to different tables: where they share a bin, as zeros do
  // behind a ReLU, one increment need not wait for the other.
  constexpr int64_t kChunk = 512;
  constexpr int kTables = 2;
  int16_t bins[kChunk];
  uint32_t tables[kTables][HistogramGrid::kBins + 1] = {};  // the last is kNowhere, to be forgotten
  for (int64_t start = begin; start < end; start += kChunk) {
    const int64_t n = std::min(kChunk, end - start);
    for (int64_t i = 0; i < n; ++i) bins[i] = static_cast<int16_t>(HistogramGrid::Bin(ToFloat(x[start + i])));
    int64_t i = 0;
    for (; i + kTables <= n; i += kTables) {
      ++tables[0][bins[i]];
      ++tables[1][bins[i + 1]];
    }
    for (; i < n; ++i) ++tables[0][bins[i]];
  }
  for (int bin = 0; bin < HistogramGrid::kBins; ++bin) {
    counts[bin] += static_cast<int64_t>(tables[0][bin]) + tables[1][bin];
  }
}

template void CountBlock(const ChannelLayout&, const BlockPlan&, int64_t, const float*, int64_t*);
template void CountBlock(const ChannelLayout&, const BlockPlan&, int64_t, const Half*, int64_t*);
template void CountBlock(const ChannelLayout&, const BlockPlan&, int64_t, const BFloat16*, int64_t*);

}  // namespace dqat::core
