// core/histogram.h, core/histogram_range.h and core/learned_step.h on every instruction set of this
// processor.
#include <gtest/gtest.h>

#include <cmath>

#include "blocks.h"
#include "cases.h"
#include "core/histogram.h"
#include "core/histogram_range.h"
#include "core/instruction_set.h"
#include "core/learned_step.h"
#include "core/small_floats.h"

namespace dqat::core::testing {
namespace {

template <typename T>
std::vector<T> Narrowed(const std::vector<float>& values) {
  std::vector<T> narrowed;
  for (const float value : values) narrowed.push_back(FromFloat<T>(value));
  return narrowed;
}

template <typename T>
std::vector<int64_t> Counts(const std::vector<T>& x) {
  const ChannelLayout layout{1, 1, static_cast<int64_t>(x.size()), false};
  const BlockPlan plan(layout);
  std::vector<int64_t> counts(HistogramGrid::kBins);
  for (int64_t block = 0; block < plan.num_blocks; ++block) {
    CountBlock(layout, plan, block, x.data(), counts.data());
  }
  return counts;
}

// By comparison with the edges of every bin.
std::vector<int64_t> PlainCounts(const std::vector<float>& x) {
  std::vector<int64_t> counts(HistogramGrid::kBins);
  for (const float value : x) {
    if (!std::isfinite(value)) continue;
    int bin = 0;
    if (value >= 0) {
      while (bin < HistogramGrid::kBins - 1 && value >= HistogramGrid::High(bin)) ++bin;
    } else {
      // The lower edge of a negative bin belongs to the next larger magnitude.
      while (bin < HistogramGrid::kSideBins && value > HistogramGrid::High(bin)) ++bin;
    }
    ++counts[bin];
  }
  return counts;
}

std::vector<float> Spread1000(int64_t size) {
  std::mt19937 generator(static_cast<unsigned>(size));
  std::normal_distribution<float> exponent(0.0f, 8.0f), sign;
  std::vector<float> x(size);
  for (float& value : x) value = std::copysign(std::exp2(exponent(generator)), sign(generator));
  AddSpecial(&x, Finite(), 31);
  AddSpecial(&x, NotFinite(), 101);
  return x;
}

TEST(HistogramTest, EveryValueIsCountedBetweenItsBinsEdges) {
  for (const int64_t size : {0, 1, 511, 513, 16385, 40001}) {
    const std::vector<float> x = Spread1000(size);
    EXPECT_EQ(Counts(x), PlainCounts(x)) << size;
  }
}

TEST(HistogramTest, SmallFloatsAreCountedAsTheFloatsThatTheyAre) {
  const std::vector<float> x = Spread1000(5003);
  const std::vector<Half> half = Narrowed<Half>(x);
  const std::vector<BFloat16> bfloat16 = Narrowed<BFloat16>(x);
  std::vector<float> from_half, from_bfloat16;
  for (const Half value : half) from_half.push_back(ToFloat(value));
  for (const BFloat16 value : bfloat16) from_bfloat16.push_back(ToFloat(value));
  EXPECT_EQ(Counts(half), PlainCounts(from_half));
  EXPECT_EQ(Counts(bfloat16), PlainCounts(from_bfloat16));
}

TEST(HistogramTest, BinsFollowEachOtherWithoutGaps) {
  for (int bin = 0; bin + 1 < HistogramGrid::kBins; ++bin) {
    EXPECT_EQ(HistogramGrid::High(bin), HistogramGrid::Low(bin + 1)) << bin;
    EXPECT_LT(HistogramGrid::Low(bin), HistogramGrid::High(bin)) << bin;
  }
}

TEST(HistogramRangeTest, AnyCountsHaveAPercentileRange) {
  const Range extremes{-3.0f, 5.0f};
  for (const int64_t large : {int64_t{1}, int64_t{1} << 52, std::numeric_limits<int64_t>::max()}) {
    for (const int bin : {0, 1, HistogramGrid::kSideBins, HistogramGrid::kBins - 1}) {
      std::vector<int64_t> counts(HistogramGrid::kBins, large == 1 ? 0 : large);
      counts[bin] = large;
      for (const double percent : {100.0, 99.9, 50.1}) {
        const Range range = PercentileRange(counts.data(), extremes, 100 - percent, percent);
        EXPECT_GE(range.min, extremes.min);
        EXPECT_LE(range.max, extremes.max);
      }
    }
  }
}

TEST(HistogramRangeTest, TheMinimumErrorRangeCutsAnOutlierOff) {
  std::vector<float> x(100'000);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 1000) / 1000.0f;
  x.push_back(100.0f);
  const Range found = MinimumErrorRange(Counts(x).data(), {0.0f, 100.0f}, {4, false});
  EXPECT_EQ(found.min, 0.0f);
  // 1e5 * max^2 / (12 * 15^2) of rounding and (100 - max)^2 of clipping are together smallest near 2.6.
  EXPECT_NEAR(found.max, 2.6f, 0.4f);
}

class LearnedStepTest : public ::testing::TestWithParam<const char*> {
 protected:
  LearnedStepTest() { EXPECT_TRUE(SetInstructionSet(GetParam())); }
  ~LearnedStepTest() override { SetInstructionSet(AvailableInstructionSets().back()); }
};

struct StepGradients {
  std::vector<float> dx, dstep;
};

StepGradients Gradients(const ChannelLayout& layout, const std::vector<Grid>& grids, float levels,
                        std::vector<float> dy, const std::vector<float>& x, InPlace in_place, Spread spread) {
  const BlockPlan plan(layout);
  const GridTable table = Table(layout, plan, grids);
  StepGradients result = {Unwritten(x.size()), Unwritten(layout.channels)};
  std::vector<float> partials = Unwritten(plan.partials);
  std::vector<float>& dx = in_place == InPlace::kYes ? dy : result.dx;
  RunBlocks(plan, spread, [&](int64_t block) {
    LearnedStepGradBlock(layout, plan, block, table, levels, dy.data(), x.data(), dx.data(), partials.data());
  });
  MergeSums(layout, plan, partials.data(), result.dstep.data());
  if (in_place == InPlace::kYes) result.dx = dx;
  return result;
}

// The paper's equations in double, of values that are no halves of a step.
TEST_P(LearnedStepTest, GradientsAreThoseOfThePaper) {
  for (const ChannelLayout& layout : Layouts()) {
    if (layout.size() > 50'000) continue;
    for (const QuantizerSpec& spec : {QuantizerSpec{8, false}, QuantizerSpec{3, true}}) {
      std::vector<Grid> grids;
      std::vector<double> steps, lowest;
      for (int64_t c = 0; c < layout.channels; ++c) {
        const bool is_signed = c % 3 != 1;
        steps.push_back(c % 5 == 4 ? 0.0 : std::ldexp(1.0, -static_cast<int>(c % 4) - 5));
        grids.push_back(LearnedStep(static_cast<float>(steps.back()), is_signed, spec).grid());
        lowest.push_back(is_signed ? static_cast<double>(spec.narrow_range) - (1 << (spec.num_bits - 1))
                                   : 0.0);
      }
      const float levels = LearnedStep(1.0f, true, spec).levels();
      const std::vector<Grid> spread_over = Grids(layout, {{-1.5f, 1.5f}}, 0, {8, false});
      std::vector<float> x = Values(layout, spread_over, 5);
      AddSpecial(&x, {kNan, kInf, -kInf}, 173);
      const std::vector<float> dy = Values(layout, spread_over, 6);
      std::vector<float> expected_dx(x.size());
      std::vector<double> sums(layout.channels), sizes(layout.channels);
      for (size_t i = 0; i < x.size(); ++i) {
        const int64_t c = (i / layout.inner) % layout.channels;
        double slope = 0.0;
        expected_dx[i] = dy[i];
        if (steps[c] > 0.0) {
          const double v = x[i] / steps[c], low = lowest[c], high = low + levels;
          if (v > low) slope = std::floor(v + 0.5) - v;
          if (v <= low) slope = low;
          if (v >= high) slope = high;
          expected_dx[i] = dy[i] * (v > low && v < high ? 1.0f : 0.0f);
        }
        sums[c] += dy[i] * slope;
        sizes[c] += std::fabs(dy[i] * slope);
      }
      for (const InPlace in_place : {InPlace::kNo, InPlace::kYes}) {
        const StepGradients got = Gradients(layout, grids, levels, dy, x, in_place, {});
        EXPECT_EQ(FirstDifference(got.dx, expected_dx), -1) << Name(layout);
        for (int64_t c = 0; c < layout.channels; ++c) {
          ASSERT_LE(std::fabs(got.dstep[c] - sums[c]), 1e-5 * sizes[c]) << Name(layout) << ", channel " << c;
        }
      }
    }
  }
}

std::string ParameterName(const ::testing::TestParamInfo<const char*>& info) { return info.param; }

INSTANTIATE_TEST_SUITE_P(InstructionSets, LearnedStepTest, ::testing::ValuesIn(AvailableInstructionSets()),
                         ParameterName);

// In the suite that runs under ThreadSanitizer.
TEST(SpreadTest, AStepsGradientIsTheSameBitsOnAnyNumberOfThreadsAndInstructionSet) {
  const char* best = InstructionSet();
  for (const ChannelLayout& layout : {ChannelLayout{1, 1, 98304, false}, ChannelLayout{2, 3, 16385, true},
                                      ChannelLayout{4099, 17, 1, true}}) {
    std::vector<Grid> grids(layout.channels, LearnedStep(0.013f, true, {8, false}).grid());
    const std::vector<float> x = Values(layout, grids, 1), dy = Values(layout, grids, 2);
    const StepGradients one = Gradients(layout, grids, 255.0f, dy, x, InPlace::kNo, {});
    for (const char* name : AvailableInstructionSets()) {
      ASSERT_TRUE(SetInstructionSet(name));
      const StepGradients other = Gradients(layout, grids, 255.0f, dy, x, InPlace::kNo, {5, true});
      EXPECT_EQ(FirstDifference(other.dx, one.dx), -1) << name << ", " << Name(layout);
      EXPECT_EQ(FirstDifference(other.dstep, one.dstep), -1) << name << ", " << Name(layout);
    }
    SetInstructionSet(best);
  }
}

TEST(LearnedStepValidityTest, AStepIsValidOrUnknownOrRefused) {
  const QuantizerSpec spec{8, false};
  EXPECT_TRUE(LearnedStep(0.1f, true, spec).valid());
  EXPECT_FALSE(LearnedStep(0.1f, true, spec).range().empty());
  for (const float unknown : {0.0f, -0.0f, kSubnormal, -kSubnormal, 1e-37f}) {
    EXPECT_TRUE(LearnedStep(unknown, true, spec).valid()) << unknown;
    EXPECT_TRUE(LearnedStep(unknown, true, spec).range().empty()) << unknown;
  }
  for (const float wrong : {-0.1f, -1e-37f, kNan, kInf, -kInf, kLargest}) {
    EXPECT_FALSE(LearnedStep(wrong, true, spec).valid()) << wrong;
  }
  // The smallest step that counts has a grid, on every level.
  const Grid grid = LearnedStep(LearnedStep::kSmallest, true, {16, false}).grid();
  EXPECT_GT(grid.scale, 0.0f);
  EXPECT_TRUE(std::isfinite(grid.inv_scale));
  EXPECT_EQ(grid.zero_level, 32768.0f);
}

}  // namespace
}  // namespace dqat::core::testing
