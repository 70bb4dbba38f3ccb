// The tensors and ranges that the tests of core run through.
#ifndef DQAT_TESTS_CC_CASES_H_
#define DQAT_TESTS_CC_CASES_H_

#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/fake_quant.h"

namespace dqat::core::testing {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kSubnormal = std::numeric_limits<float>::denorm_min();
constexpr float kLargest = std::numeric_limits<float>::max();

// Tails of vectors, rows and blocks on every kind of axis; one channel and many; nothing at all.
inline std::vector<ChannelLayout> Layouts() {
  std::vector<ChannelLayout> layouts;
  for (const int64_t n : {0, 1, 2, 31, 32, 33, 65, 16383, 16384, 16385, 40001, 98304}) {
    layouts.push_back({1, 1, n, false});
  }
  const ChannelLayout per_channel[] = {
      {2, 3, 4, true},   {1, 5, 7, true},      {3, 5, 1, true},      {1, 7, 1, true},     {7, 1, 1, true},
      {1, 1, 100, true}, {5, 1, 9, true},      {1, 2, 40001, true},  {2, 3, 16385, true}, {513, 129, 1, true},
      {2, 33, 31, true}, {2, 100000, 1, true}, {1, 100000, 2, true}, {70000, 2, 1, true}, {4099, 17, 1, true},
      {0, 5, 1, true},   {0, 5, 3, true},      {3, 5, 0, true},      {4, 0, 1, true},     {4, 0, 3, true},
  };
  layouts.insert(layouts.end(), std::begin(per_channel), std::end(per_channel));
  return layouts;
}

inline std::string Name(const ChannelLayout& layout) {
  return (layout.per_channel ? "per channel [" : "per tensor [") + std::to_string(layout.outer) + ", " +
         std::to_string(layout.channels) + ", " + std::to_string(layout.inner) + "]";
}

// Ranges of every kind that IsValid accepts. The empty one comes last.
inline std::vector<Range> ValidRanges() {
  return {{-1.0f, 1.0f},      {-0.3f, 0.71f},    {0.0f, 6.0f},      {-4.0f, 0.0f},  {0.5f, 1.5f},
          {-3.0f, -2.0f},     {0.0f, 0.0f},      {-1e-5f, 1000.0f}, {0.0f, 3e-36f}, {-1e-37f, 1e-37f},
          {0.0f, kSubnormal}, {-1e-40f, 3e-40f}, {-1e38f, 1e38f},   {kInf, -kInf}};
}

inline std::vector<Range> ValidRangesButEmpty() {
  std::vector<Range> ranges = ValidRanges();
  ranges.pop_back();
  return ranges;
}

// One grid a channel; channels take the ranges in turn, the first channel the one at `first`.
inline std::vector<Grid> Grids(const ChannelLayout& layout, const std::vector<Range>& ranges, size_t first,
                               const QuantizerSpec& spec) {
  std::vector<Grid> grids;
  for (int64_t channel = 0; channel < layout.channels; ++channel) {
    grids.push_back(MakeGrid(ranges[(first + channel) % ranges.size()], spec));
  }
  return grids;
}

// Values around each channel's range: on its ends, on levels, halfway between them, far outside.
inline std::vector<float> Values(const ChannelLayout& layout, const std::vector<Grid>& grids, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-0.5f, 1.5f);
  std::vector<float> x(layout.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const Grid& grid = grids[(i / layout.inner) % layout.channels];
    const float steps = std::floor(uniform(generator) * 300.0f);
    switch (generator() % 8) {
      case 0:
        x[i] = grid.nudged_min;
        break;
      case 1:
        x[i] = grid.nudged_max;
        break;
      case 2:
        x[i] = grid.nudged_min + (steps + 0.5f) * grid.scale;
        break;
      case 3:
        x[i] = grid.nudged_min + steps * grid.scale;
        break;
      case 4:
        x[i] = uniform(generator) - 0.5f;
        break;
      default:
        x[i] = grid.nudged_min + uniform(generator) * (grid.nudged_max - grid.nudged_min);
    }
  }
  return x;
}

// Puts values that are easily handled wrongly among the others, at changing places.
inline void AddSpecial(std::vector<float>* x, const std::vector<float>& special, size_t stride) {
  for (size_t i = 0, k = 0; i < x->size(); i += stride, ++k) (*x)[i] = special[k % special.size()];
}

inline const std::vector<float>& Finite() {
  static const std::vector<float> values = {0.0f,    -0.0f,    kSubnormal, -kSubnormal, 1e-39f,
                                            -1e-39f, kLargest, -kLargest,  1e-38f};
  return values;
}

inline const std::vector<float>& NotFinite() {
  static const std::vector<float> values = {kNan, kInf, -kInf, -kNan};
  return values;
}

// The index of the first element whose bits differ, or -1. All NaNs are one value.
inline int64_t FirstDifference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return i;
  }
  return -1;
}

}  // namespace dqat::core::testing

#endif  // DQAT_TESTS_CC_CASES_H_
