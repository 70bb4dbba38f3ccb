// core/quantization.h against the same definitions in double precision.
#include "core/quantization.h"

#include <gtest/gtest.h>

#include <random>

#include "cases.h"

namespace dqat::core::testing {
namespace {

constexpr double kTolerance = 4.0 * std::numeric_limits<float>::epsilon();

std::vector<QuantizerSpec> AllSpecs() {
  std::vector<QuantizerSpec> specs;
  for (int num_bits = 2; num_bits <= 16; ++num_bits) {
    specs.push_back({num_bits, false});
    specs.push_back({num_bits, true});
  }
  return specs;
}

std::vector<Range> RandomRanges() {
  std::mt19937 generator(0);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<Range> ranges = {{-1.0f, 1.0f}, {0.0f, 1.0f}, {-1.0f, 0.0f}, {2.0f, 3.0f}, {-3.0f, -2.0f}};
  while (ranges.size() < 500) {
    const float scale = std::pow(10.0f, 8.0f * uniform(generator));
    const float a = scale * uniform(generator), b = scale * uniform(generator);
    ranges.push_back({std::fmin(a, b), std::fmax(a, b)});
  }
  return ranges;
}

TEST(MakeGridTest, ScaleAndZeroPointAreThoseOfDoublePrecision) {
  for (const QuantizerSpec& spec : AllSpecs()) {
    for (const Range& range : RandomRanges()) {
      const Grid grid = MakeGrid(range, spec);
      const double levels = spec.quant_max() - spec.quant_min();
      const double scale = (static_cast<double>(range.max) - range.min) / levels;
      ASSERT_NEAR(grid.scale / scale, 1.0, kTolerance);
      ASSERT_NEAR(grid.inv_scale * scale, 1.0, kTolerance);
      // The level of 0, which stays on the grid, and is rounded to the nearest; a tie may go either way.
      const double exact =
          std::fmin(std::fmax(spec.quant_min() - range.min / scale, spec.quant_min()), spec.quant_max());
      const double level = grid.zero_point + (1 << (spec.num_bits - 1));
      ASSERT_NEAR(level, exact, 0.5 + 0.01) << range.min << " " << range.max << " " << spec.num_bits;
      ASSERT_GE(level, spec.quant_min());
      ASSERT_LE(level, spec.quant_max());
      ASSERT_EQ(grid.zero_level, level - spec.quant_min());
    }
  }
}

TEST(MakeGridTest, TheNudgedRangeHasAsManyLevelsAndContainsZero) {
  for (const QuantizerSpec& spec : AllSpecs()) {
    for (const Range& range : RandomRanges()) {
      const Grid grid = MakeGrid(range, spec);
      ASSERT_LE(grid.nudged_min, 0.0f);
      ASSERT_GE(grid.nudged_max, 0.0f);
      const float levels = static_cast<float>(spec.quant_max() - spec.quant_min());
      ASSERT_EQ(grid.nudged_min, -grid.zero_level * grid.scale);
      ASSERT_EQ(grid.nudged_max, (levels - grid.zero_level) * grid.scale);
      ASSERT_EQ(grid.grad_min, grid.nudged_min);
      ASSERT_EQ(grid.grad_max, grid.nudged_max);
      ASSERT_FALSE(grid.passthrough);
    }
  }
}

TEST(MakeGridTest, TheEmptyRangePassesValuesThrough) {
  const Grid grid = MakeGrid(Range(), {8, false});
  EXPECT_TRUE(grid.passthrough);
  EXPECT_EQ(grid.grad_min, -kInf);
  EXPECT_EQ(grid.grad_max, kInf);
}

TEST(MakeGridTest, ARangeWithoutAScaleInFloat32KnowsZeroAlone) {
  const Range ranges[] = {{0.0f, 0.0f},      {0.0f, kSubnormal}, {-kSubnormal, 0.0f},
                          {-1e-40f, 1e-40f}, {0.0f, 1e-39f},     {-5e-38f, 5e-38f}};
  for (const QuantizerSpec& spec : AllSpecs()) {
    for (const Range& range : ranges) {
      const Grid grid = MakeGrid(range, spec);
      if (grid.scale != 0.0f) {  // enough for few levels
        ASSERT_TRUE(std::isnormal(grid.scale) && std::isfinite(grid.inv_scale));
        continue;
      }
      ASSERT_LT((static_cast<double>(range.max) - range.min) / (spec.quant_max() - spec.quant_min()),
                1.18e-38);
      EXPECT_EQ(grid.inv_scale, 0.0f);
      EXPECT_EQ(grid.nudged_min, 0.0f);
      EXPECT_EQ(grid.nudged_max, 0.0f);
      EXPECT_EQ(grid.zero_point, 0);
      EXPECT_EQ(grid.grad_min, -kInf);
      EXPECT_FALSE(grid.passthrough);
    }
  }
}

TEST(IsValidTest, TellsWhichRangesCanBeQuantizedWith) {
  for (const Range& range : ValidRanges()) EXPECT_TRUE(IsValid(range)) << range.min << " " << range.max;
  const Range invalid[] = {{1.0f, -1.0f}, {0.5f, 0.5f},  {kNan, 1.0f},         {-1.0f, kNan}, {kNan, kNan},
                           {-1.0f, kInf}, {-kInf, 1.0f}, {-kInf, kInf},        {kInf, kInf},  {-kInf, -kInf},
                           {kInf, 1.0f},  {1.0f, -kInf}, {-kLargest, kLargest}};
  for (const Range& range : invalid) EXPECT_FALSE(IsValid(range)) << range.min << " " << range.max;
}

TEST(FitRangeTest, ContainsTheRecordAndZero) {
  for (const QuantizerSpec& spec : AllSpecs()) {
    for (const Range& record : RandomRanges()) {
      const Range fitted = FitRange(record, spec);
      ASSERT_EQ(fitted.min, std::fmin(record.min, 0.0f));
      ASSERT_EQ(fitted.max, std::fmax(record.max, 0.0f));
    }
  }
}

TEST(FitRangeTest, ASymmetricRangeHasItsZeroOnTheMiddleLevel) {
  for (QuantizerSpec spec : AllSpecs()) {
    spec.symmetric = true;
    for (const Range& record : RandomRanges()) {
      const Range fitted = FitRange(record, spec);
      const double bound = std::fmax(std::fabs(record.min), std::fabs(record.max));
      const double levels = (1 << (spec.num_bits - 1)) - 1;  // on the positive side
      ASSERT_EQ(fitted.max, static_cast<float>(bound));
      ASSERT_NEAR(fitted.min / (-bound * (spec.narrow_range ? 1.0 : (levels + 1) / levels)), 1.0, kTolerance);
      const Grid grid = MakeGrid(fitted, spec);
      ASSERT_EQ(grid.zero_point, 0) << spec.num_bits << " " << spec.narrow_range << " " << bound;
      ASSERT_NEAR(grid.scale * levels / bound, 1.0, kTolerance);
    }
  }
}

TEST(FitRangeTest, APowerOfTwoRangeIsTheNextOneThatTfliteReads) {
  QuantizerSpec spec{16, false, false, true};
  for (const Range& record : RandomRanges()) {
    const double bound = std::fmax(std::fabs(record.min), std::fabs(record.max));
    double power = 1.0;
    while (power < bound && power < 64.0) power *= 2.0;
    const Range fitted = FitRange(record, spec);
    ASSERT_EQ(fitted.min, -power) << bound;
    const Grid grid = MakeGrid(fitted, spec);
    ASSERT_EQ(grid.scale, power / 32768.0) << bound;
    ASSERT_EQ(grid.zero_point, 0) << bound;
  }
}

TEST(FitRangeTest, WhatIsNoRecordStaysAsItIs) {
  const Range ranges[] = {Range(),       {kNan, 1.0f},  {-1.0f, kNan}, {kNan, kNan}, {-kInf, kInf},
                          {-1.0f, kInf}, {-kInf, 1.0f}, {2.0f, -3.0f}, {kInf, kInf}, {-kInf, -kInf}};
  for (const Range& range : ranges) {
    for (const bool symmetric : {false, true}) {
      for (const bool power_of_two : {false, true}) {
        const Range fitted = FitRange(range, {8, false, symmetric, power_of_two});
        EXPECT_EQ(FirstDifference({fitted.min, fitted.max}, {range.min, range.max}), -1)
            << range.min << " " << range.max;
        EXPECT_EQ(IsValid(fitted), range.empty());
      }
    }
  }
}

TEST(FitRangeTest, AConstantTensorHasARange) {
  EXPECT_EQ(FitRange({3.0f, 3.0f}, {8, false}).min, 0.0f);
  EXPECT_EQ(FitRange({-3.0f, -3.0f}, {8, false}).max, 0.0f);
  EXPECT_TRUE(IsValid(FitRange({0.0f, 0.0f}, {8, false, true})));
}

}  // namespace
}  // namespace dqat::core::testing
