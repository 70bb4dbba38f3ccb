// Results are the same bits on every instruction set and however blocks are spread over threads. Under
// ThreadSanitizer this also proves that blocks write apart from each other.
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <thread>
#include <vector>

#include "blocks.h"
#include "cases.h"
#include "core/block_queue.h"
#include "core/instruction_set.h"
#include "core/streaming.h"

namespace dqat::core::testing {
namespace {

// All that core computes of one tensor, one after the other.
std::vector<float> Everything(const ChannelLayout& layout, Spread spread) {
  const std::vector<Grid> grids = Grids(layout, ValidRanges(), 0, {8, false});
  const std::vector<float> x = Values(layout, grids, 1), dy = Values(layout, grids, 2);
  std::vector<float> all;
  const auto add = [&all](const std::vector<float>& part) {
    all.insert(all.end(), part.begin(), part.end());
  };
  const Quantized quantized = FakeQuant(layout, grids, x, Track::kYes, InPlace::kNo, spread);
  for (const auto& part : {quantized.y, quantized.min, quantized.max}) add(part);
  add(FakeQuant(layout, grids, x, Track::kNo, InPlace::kNo, spread).y);
  for (const Range& record : MinMax(layout, x, spread)) add({record.min, record.max});
  const Gradients gradients = FakeQuantGrad(layout, grids, dy, x, Dx::kSeparate, spread);
  for (const auto& part : {gradients.dx, gradients.dmin, gradients.dmax}) add(part);
  for (const Activation activation : {Activation::kLinear, Activation::kRelu, Activation::kRelu6}) {
    if (layout.per_channel) break;
    const QuantizedWithReach found = FakeQuantReach(layout, grids, activation, x, InPlace::kNo, spread);
    for (const auto& part : {found.y, found.min, found.max}) add(part);
    const Gradients reached = ReachGrad(layout, found.reach, dy, Dx::kSeparate, spread);
    for (const auto& part : {reached.dx, reached.dmin, reached.dmax}) add(part);
  }
  return all;
}

TEST(SpreadTest, ResultsAreTheSameBitsOnAnyNumberOfThreadsInAnyOrder) {
  for (const ChannelLayout& layout : Layouts()) {
    const std::vector<float> one = Everything(layout, {1, false});
    for (const Spread spread : {Spread{1, true}, Spread{2, false}, Spread{5, true}}) {
      EXPECT_EQ(FirstDifference(Everything(layout, spread), one), -1) << Name(layout);
    }
  }
}

TEST(SpreadTest, ResultsAreTheSameBitsOnEveryInstructionSet) {
  const char* best = InstructionSet();
  for (const ChannelLayout& layout : Layouts()) {
    ASSERT_TRUE(SetInstructionSet("baseline"));
    const std::vector<float> baseline = Everything(layout, {});
    for (const char* name : AvailableInstructionSets()) {
      ASSERT_TRUE(SetInstructionSet(name));
      EXPECT_EQ(FirstDifference(Everything(layout, {}), baseline), -1) << name << ", " << Name(layout);
    }
  }
  SetInstructionSet(best);
}

TEST(SpreadTest, ResultsAreTheSameBitsWhereTheyGoPastTheCaches) {
  const int64_t kept = StreamingBytes();
  const char* best = InstructionSet();
  for (const ChannelLayout& layout : Layouts()) {
    SetStreamingBytes(std::numeric_limits<int64_t>::max());
    const std::vector<float> stored = Everything(layout, {});
    SetStreamingBytes(0);
    for (const char* name : AvailableInstructionSets()) {
      ASSERT_TRUE(SetInstructionSet(name));
      EXPECT_EQ(FirstDifference(Everything(layout, {2, false}), stored), -1) << name << ", " << Name(layout);
    }
  }
  SetInstructionSet(best);
  SetStreamingBytes(kept);
}

TEST(SpreadTest, EachBlockIsTakenOnceAndAThreadThatComesLateTouchesNothing) {
  std::vector<std::thread> threads;
  for (int64_t call = 0; call < 1000; ++call) {
    const int64_t count = call % 9;
    const auto queue = std::make_shared<BlockQueue>(count, 4);
    std::vector<int64_t> taken(count);
    {
      // Gone when a late thread comes.
      const auto body =
          std::make_unique<BlockQueue::Body>([&taken](int64_t block, BlockQueue::Worker* worker) {
            for (; block >= 0; block = worker->Next()) ++taken[block];
          });
      for (int i = 1; i < 4; ++i) {
        threads.emplace_back([queue, i, late = body.get()] { queue->Work(i, *late); });
      }
      queue->Work(0, *body);
      queue->Wait();
    }
    EXPECT_EQ(taken, std::vector<int64_t>(count, 1));
    if (call % 20 < 19) continue;
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(SpreadTest, TheBestInstructionSetIsTakenAndAnUnknownOneRefused) {
  EXPECT_STREQ(InstructionSet(), AvailableInstructionSets().back());
  EXPECT_STREQ(AvailableInstructionSets().front(), "baseline");
  EXPECT_FALSE(SetInstructionSet("sse9"));
  EXPECT_STREQ(InstructionSet(), AvailableInstructionSets().back());
}

TEST(SpreadTest, ThePlanDependsOnTheShapeAlone) {
  EXPECT_EQ(BlockPlan({0, 5, 3, true}).num_blocks, 0);
  EXPECT_EQ(BlockPlan({1, 1, 16384, false}).num_blocks, 1);
  EXPECT_EQ(BlockPlan({1, 1, 98304, false}).num_blocks, 3);
  // An interleaved tensor keeps its partials small: at most 64 vectors of channels.
  EXPECT_LE(BlockPlan({100000, 1000, 1, true}).partials, 64 * 1000);
}

}  // namespace
}  // namespace dqat::core::testing
