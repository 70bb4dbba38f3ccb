// core/fake_quant.h against core/fake_quant_reference.h, on every instruction set of this processor.
#include "core/fake_quant.h"

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "blocks.h"
#include "cases.h"
#include "core/fake_quant_reference.h"
#include "core/instruction_set.h"

namespace dqat::core::testing {
namespace {

#define EXPECT_SAME_BITS(got, expected, what)                                                               \
  do {                                                                                                      \
    const int64_t at = FirstDifference(got, expected);                                                      \
    EXPECT_EQ(at, -1) << (what) << ": element " << at << " is " << (got)[at] << ", not " << (expected)[at]; \
  } while (false)

// Instruction set, and whether subnormals are flushed.
class CoreTest : public ::testing::TestWithParam<std::tuple<const char*, bool>> {
 protected:
  CoreTest() : flush_(std::get<1>(GetParam())) {
    EXPECT_TRUE(SetInstructionSet(std::get<0>(GetParam())));
    EXPECT_STREQ(InstructionSet(), std::get<0>(GetParam()));
  }
  ~CoreTest() override { SetInstructionSet(AvailableInstructionSets().back()); }

  // Calls visit(layout, first range) for all layouts, and per tensor for all ranges.
  template <typename Visit>
  void ForEachCase(const std::vector<Range>& ranges, Visit visit) {
    for (const ChannelLayout& layout : Layouts()) {
      for (size_t first = 0; first < (layout.channels == 1 ? ranges.size() : 1); ++first)
        visit(layout, first);
    }
  }

  // Every valid range and every layout, held against the reference. `stride` is the distance of special
  // values.
  void ExpectReferenceValues(const QuantizerSpec& spec, const std::vector<float>& special, size_t stride) {
    ForEachCase(ValidRanges(), [&](const ChannelLayout& layout, size_t first) {
      const std::vector<Grid> grids = Grids(layout, ValidRanges(), first, spec);
      std::vector<float> x = Values(layout, grids, first);
      AddSpecial(&x, special, stride);
      const std::string what = Name(layout) + ", range " + std::to_string(first);
      const std::vector<float> expected = reference::FakeQuant(layout, grids, x);
      EXPECT_SAME_BITS(FakeQuant(layout, grids, x, Track::kNo).y, expected, what);
      const Quantized tracked = FakeQuant(layout, grids, x, Track::kYes);
      EXPECT_SAME_BITS(tracked.y, expected, what + ", tracked");
      ExpectRecords(reference::Records(layout, x), tracked.min, tracked.max, what + ", tracked");
    });
  }

  static void ExpectRecords(const std::vector<Range>& expected, const std::vector<float>& min,
                            const std::vector<float>& max, const std::string& what) {
    std::vector<float> expected_min, expected_max;
    for (const Range& range : expected) {
      expected_min.push_back(range.min);
      expected_max.push_back(range.max);
    }
    EXPECT_SAME_BITS(min, expected_min, what + ", min");
    EXPECT_SAME_BITS(max, expected_max, what + ", max");
  }

  const FlushSubnormals flush_;
};

TEST_P(CoreTest, FiniteValuesAreQuantizedAndTrackedAsInTheReference) {
  ExpectReferenceValues({8, false}, Finite(), 13);
  ExpectReferenceValues({4, true}, Finite(), 7);
}

TEST_P(CoreTest, NanAndInfAreQuantizedAndTrackedAsInTheReference) {
  ExpectReferenceValues({8, false}, NotFinite(), 1);
  ExpectReferenceValues({8, true}, NotFinite(), 40009);  // the first element of a tensor alone
}

TEST_P(CoreTest, EveryNumberOfBitsIsQuantizedAsInTheReference) {
  const ChannelLayout layouts[] = {{1, 1, 5003, false}, {61, 28, 3, true}, {61, 83, 1, true}};
  for (const ChannelLayout& layout : layouts) {
    for (int num_bits = 2; num_bits <= 16; ++num_bits) {
      for (const bool narrow_range : {false, true}) {
        for (size_t first = 0; first < ValidRanges().size(); ++first) {
          const std::vector<Grid> grids = Grids(layout, ValidRanges(), first, {num_bits, narrow_range});
          const std::vector<float> x = Values(layout, grids, num_bits);
          EXPECT_SAME_BITS(FakeQuant(layout, grids, x, Track::kNo).y, reference::FakeQuant(layout, grids, x),
                           Name(layout) + ", bits " + std::to_string(num_bits));
        }
      }
    }
  }
}

TEST_P(CoreTest, QuantizingQuantizedValuesChangesNothing) {
  for (const int num_bits : {2, 8, 16}) {
    ForEachCase(ValidRanges(), [&](const ChannelLayout& layout, size_t first) {
      const std::vector<Grid> grids = Grids(layout, ValidRanges(), first, {num_bits, false});
      const std::vector<float> once = FakeQuant(layout, grids, Values(layout, grids, first), Track::kNo).y;
      EXPECT_SAME_BITS(FakeQuant(layout, grids, once, Track::kNo).y, once,
                       Name(layout) + ", range " + std::to_string(first));
    });
  }
}

TEST_P(CoreTest, TheOutputMayBeTheInput) {
  ForEachCase(ValidRangesButEmpty(), [&](const ChannelLayout& layout, size_t first) {
    const std::vector<Grid> grids = Grids(layout, ValidRangesButEmpty(), first, {8, false});
    const std::vector<float> x = Values(layout, grids, first);
    for (const Track track : {Track::kNo, Track::kYes}) {
      const Quantized apart = FakeQuant(layout, grids, x, track);
      const Quantized in_place = FakeQuant(layout, grids, x, track, InPlace::kYes);
      EXPECT_SAME_BITS(in_place.y, apart.y, Name(layout));
      EXPECT_SAME_BITS(in_place.min, apart.min, Name(layout));
      EXPECT_SAME_BITS(in_place.max, apart.max, Name(layout));
    }
  });
}

TEST_P(CoreTest, RecordsAreThoseOfTheReference) {
  const std::vector<Range> ranges = {{-1.0f, 2.0f}};
  for (const ChannelLayout& layout : Layouts()) {
    const std::vector<Grid> grids = Grids(layout, ranges, 0, {8, false});
    for (const std::vector<float>& special : {std::vector<float>{0.5f}, Finite(), NotFinite()}) {
      for (const size_t stride : {1, 29, 30011}) {
        std::vector<float> x = Values(layout, grids, stride);
        AddSpecial(&x, special, stride);
        std::vector<float> min, max;
        for (const Range& record : MinMax(layout, x)) {
          min.push_back(record.min);
          max.push_back(record.max);
        }
        ExpectRecords(reference::Records(layout, x), min, max, Name(layout));
      }
    }
  }
}

TEST_P(CoreTest, GradientsAreThoseOfTheReference) {
  constexpr double kEpsilon = std::numeric_limits<float>::epsilon();
  ForEachCase(ValidRanges(), [&](const ChannelLayout& layout, size_t first) {
    const std::vector<Grid> grids = Grids(layout, ValidRanges(), first, {8, false});
    std::vector<float> x = Values(layout, grids, first);
    AddSpecial(&x, Finite(), 11);
    AddSpecial(&x, NotFinite(), 97);
    const std::vector<float> dy = Values(layout, Grids(layout, {{-1.0f, 1.0f}}, 0, {8, false}), first + 99);
    const reference::Gradients expected = reference::FakeQuantGrad(layout, grids, dy, x);
    const double additions = static_cast<double>(layout.outer) * layout.inner;
    for (const Dx where : {Dx::kSeparate, Dx::kIsDy, Dx::kIsX}) {
      const Gradients got = FakeQuantGrad(layout, grids, dy, x, where);
      EXPECT_SAME_BITS(got.dx, expected.dx, Name(layout));
      // Each addition is off by at most half an epsilon of the sum of magnitudes.
      for (int64_t c = 0; c < layout.channels; ++c) {
        ASSERT_LE(std::fabs(got.dmin[c] - expected.dmin[c]), additions * kEpsilon * expected.below[c])
            << Name(layout) << ", channel " << c;
        ASSERT_LE(std::fabs(got.dmax[c] - expected.dmax[c]), additions * kEpsilon * expected.above[c])
            << Name(layout) << ", channel " << c;
      }
    }
  });
}

// Words that are put together one value at a time.
std::vector<uint64_t> Reach(const std::vector<float>& x, const Grid& grid, Activation activation) {
  const SlopeBounds bounds = BoundSlopes(grid.grad_min, grid.grad_max, activation);
  std::vector<uint64_t> words(ReachWords(x.size()), 0);
  for (size_t i = 0; i < x.size(); ++i) {
    const int place = i % kReachValues;
    words[i / kReachValues] |=
        bounds.positive ? SlopeReach<true>(x[i], bounds, place) : SlopeReach<false>(x[i], bounds, place);
  }
  return words;
}

TEST_P(CoreTest, AnActivationInTheSamePassGivesTheBitsOfOneBefore) {
  for (const Activation activation : {Activation::kLinear, Activation::kRelu, Activation::kRelu6}) {
    ForEachCase(ValidRanges(), [&](const ChannelLayout& layout, size_t first) {
      if (layout.per_channel) return;
      const std::vector<Grid> grids = Grids(layout, ValidRanges(), first, {8, false});
      std::vector<float> x = Values(layout, grids, first);
      AddSpecial(&x, Finite(), 11);
      AddSpecial(&x, {0.0f, 6.0f, std::nextafter(6.0f, 0.0f), std::nextafter(6.0f, 7.0f)}, 7);
      const std::vector<float> dy = Values(layout, Grids(layout, {{-1.0f, 1.0f}}, 0, {8, false}), first + 99);
      for (const bool finite : {true, false}) {
        if (!finite) AddSpecial(&x, NotFinite(), 97);
        const std::vector<float> activated = reference::Activated(x, activation);
        // As if the activation were an operation before: its sums are those of its result.
        const Gradients apart = FakeQuantGrad(layout, grids, dy, activated);
        for (const bool in_place : {false, true}) {
          if (in_place && grids[0].passthrough) continue;
          const QuantizedWithReach got =
              FakeQuantReach(layout, grids, activation, x, in_place ? InPlace::kYes : InPlace::kNo);
          EXPECT_SAME_BITS(got.y, reference::FakeQuant(layout, grids, activated), Name(layout));
          ExpectRecords(reference::Records(layout, activated), got.min, got.max, Name(layout));
          EXPECT_EQ(got.reach, Reach(x, grids[0], activation)) << Name(layout);
          const Gradients found = ReachGrad(layout, got.reach, dy, in_place ? Dx::kIsDy : Dx::kSeparate);
          EXPECT_SAME_BITS(found.dx, reference::FakeQuantGrad(layout, grids, dy, x, activation).dx,
                           Name(layout));
          EXPECT_SAME_BITS(found.dmin, apart.dmin, Name(layout));
          EXPECT_SAME_BITS(found.dmax, apart.dmax, Name(layout));
        }
      }
    });
  }
}

TEST_P(CoreTest, AGradientThatIsNanReachesTheSums) {
  for (const ChannelLayout& layout : {ChannelLayout{1, 1, 20001, false}, ChannelLayout{667, 3, 10, true},
                                      ChannelLayout{2001, 10, 1, true}}) {
    const std::vector<Grid> grids = Grids(layout, {{-1.0f, 1.0f}}, 0, {8, false});
    std::vector<float> x(layout.size(), -5.0f), dy(layout.size(), 1.0f);
    dy.back() = kNan;
    EXPECT_TRUE(std::isnan(FakeQuantGrad(layout, grids, dy, x).dmin.back())) << Name(layout);
    EXPECT_EQ(FakeQuantGrad(layout, grids, dy, x).dmax.back(), 0.0f) << Name(layout);
    if (layout.per_channel) continue;
    const std::vector<uint64_t> reach = FakeQuantReach(layout, grids, Activation::kLinear, x).reach;
    EXPECT_TRUE(std::isnan(ReachGrad(layout, reach, dy).dmin.back())) << Name(layout);
    EXPECT_EQ(ReachGrad(layout, reach, dy).dmax.back(), 0.0f) << Name(layout);
  }
}

std::string ParameterName(const ::testing::TestParamInfo<std::tuple<const char*, bool>>& info) {
  return std::string(std::get<0>(info.param)) + (std::get<1>(info.param) ? "FlushingSubnormals" : "");
}

INSTANTIATE_TEST_SUITE_P(InstructionSets, CoreTest,
                         ::testing::Combine(::testing::ValuesIn(AvailableInstructionSets()),
                                            ::testing::Bool()),
                         ParameterName);

}  // namespace
}  // namespace dqat::core::testing
