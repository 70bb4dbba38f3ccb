#include "core/histogram.h"

#include <cstring>
#include <limits>

namespace dqat::core {
namespace {

constexpr int kDroppedBits = 23 - HistogramGrid::kMantissaBits;
// What the upper bits of 2^kMinExponent are as an integer.
constexpr int kFirst = (127 + HistogramGrid::kMinExponent) << HistogramGrid::kMantissaBits;
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr int kNowhere = HistogramGrid::kBins;  // where a NaN or an Inf is counted, to be forgotten

inline int LevelOfBits(uint32_t magnitude) {
  const int level = static_cast<int>(magnitude >> kDroppedBits) - kFirst + 1;
  const int above = level < 0 ? 0 : level;
  return above > HistogramGrid::kSideBins ? HistogramGrid::kSideBins : above;
}

inline uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline int Bin(float x) {
  const uint32_t bits = Bits(x), magnitude = bits & 0x7fffffffu;
  const int level = LevelOfBits(magnitude);
  const int bin = HistogramGrid::kSideBins + (bits >> 31 ? -level : level);
  return magnitude >= kInfinityBits ? kNowhere : bin;
}

}  // namespace

int HistogramGrid::Level(float x) { return LevelOfBits(Bits(x) & 0x7fffffffu); }

float HistogramGrid::Edge(int level) {
  if (level > kSideBins) return std::numeric_limits<float>::infinity();
  const uint32_t bits = static_cast<uint32_t>(level - 1 + kFirst) << kDroppedBits;
  float edge;
  std::memcpy(&edge, &bits, sizeof edge);
  return edge;
}

float HistogramGrid::Low(int bin) {
  const int level = bin - kSideBins;
  return level > 0 ? Edge(level) : -Edge(1 - level);
}

float HistogramGrid::High(int bin) { return -Low(2 * kSideBins - bin); }

void CountBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const float* x,
                int64_t* counts) {
  const int64_t begin = block * plan.block_elements;
  const int64_t end = std::min(layout.size(), begin + plan.block_elements);
  // Bins first, which vectorises. Neighbours go to different tables: where they share a bin, as zeros do
  // behind a ReLU, one increment need not wait for the other.
  constexpr int64_t kChunk = 512;
  constexpr int kTables = 2;
  int16_t bins[kChunk];
  uint32_t tables[kTables][HistogramGrid::kBins + 1] = {};
  for (int64_t start = begin; start < end; start += kChunk) {
    const int64_t n = std::min(kChunk, end - start);
    for (int64_t i = 0; i < n; ++i) bins[i] = static_cast<int16_t>(Bin(x[start + i]));
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

}  // namespace dqat::core
