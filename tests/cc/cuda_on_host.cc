// Runs the CUDA kernels' code (core/cuda_work.h) one thread after the other on the CPU, and compares with the
// CPU kernels: outputs, gradients to x and records to the bit; sums within the error of float32 summation.
// Prints one line a failure, and exits with 1 after any.
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/cuda_work.h"
#include "core/fake_quant.h"
#include "core/slope_reach.h"
#include "host_block.h"

namespace dqat::core {
namespace {

using cuda::Walk;

// A tensor in both precisions, the slopes that come back to it, and a range for each channel.
template <typename T>
struct Case {
  Case(const ChannelLayout& layout, bool with_bad_values, unsigned seed) : layout(layout) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < layout.size(); ++i) {
      x.push_back(static_cast<T>(normal(generator)));
      dy.push_back(static_cast<T>(normal(generator)));
    }
    for (int64_t i = 0; with_bad_values && i < layout.size(); i += 1 + generator() % 997) {
      x[i] = static_cast<T>(i % 3 == 0 ? cuda::kNan : (i % 3 == 1 ? kInfinity : -kInfinity));
    }
    for (int64_t channel = 0; channel < layout.channels; ++channel) {
      // Among them channels without a range, with the range of zeros only, and with one of one sign.
      const Range kinds[] = {{-0.7f, 0.9f}, {}, {0.0f, 0.0f}, {0.0f, 1.3f}, {0.2f, 0.8f}, {-1.1f, 0.0f}};
      const Range& range = kinds[(channel + seed) % 6];
      min.push_back(range.min);
      max.push_back(range.max);
    }
  }

  ChannelLayout layout;
  std::vector<T> x, dy;
  std::vector<float> min, max;
};

template <typename T>
struct Results {
  explicit Results(const ChannelLayout& layout)
      : y(layout.size()), dx(layout.size()), min(layout.channels), max(min), dmin(min), dmax(min) {}

  std::vector<T> y, dx;
  std::vector<float> min, max, dmin, dmax;
  std::vector<uint64_t> reach;  // per tensor only
};

// The CPU kernels take float: other types are widened before, and rounded after.
template <typename T>
Results<T> OnCpu(const Case<T>& input, const QuantizerSpec& spec, Activation activation) {
  const ChannelLayout& layout = input.layout;
  const BlockPlan plan(layout);
  Results<T> results(layout);
  const std::vector<float> x(input.x.begin(), input.x.end()), dy(input.dy.begin(), input.dy.end());
  std::vector<float> y(x.size()), dx(x.size()), first(plan.partials), second(plan.partials);
  GridTable grids(layout, plan);
  for (int64_t channel = 0; channel < layout.channels; ++channel) {
    grids.Set(channel, MakeGrid({input.min[channel], input.max[channel]}, spec));
  }
  const RecordPartials record{first.data(), second.data()};
  if (!layout.per_channel) results.reach.resize(ReachWords(layout.size()));
  for (int64_t block = 0; block < plan.num_blocks; ++block) {
    if (layout.per_channel) {
      FakeQuantBlock(layout, plan, block, grids, x.data(), y.data(), record);
    } else {
      FakeQuantReachBlock(layout, plan, block, grids, activation, x.data(), y.data(), results.reach.data(),
                          record);
    }
  }
  MergeRecords(layout, plan, record, results.min.data(), results.max.data());
  for (int64_t block = 0; block < plan.num_blocks; ++block) {
    if (layout.per_channel) {
      FakeQuantGradBlock(layout, plan, block, grids, dy.data(), x.data(), dx.data(), first.data(),
                         second.data());
    } else {
      ReachGradBlock(layout, plan, block, dy.data(), results.reach.data(), dx.data(), first.data(),
                     second.data());
    }
  }
  MergeSums(layout, plan, first.data(), results.dmin.data());
  MergeSums(layout, plan, second.data(), results.dmax.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const bool passes = std::isinf(input.min[i / layout.inner % layout.channels]);
    results.y[i] = passes && activation == Activation::kLinear ? input.x[i] : static_cast<T>(y[i]);
    results.dx[i] = static_cast<T>(dx[i]);
  }
  return results;
}

template <typename T>
Results<T> OnPlan(const Case<T>& input, const QuantizerSpec& spec, int64_t grid_size, bool in_place,
                  Activation activation = Activation::kLinear) {
  const Plan plan(input.layout);
  const cuda::Ranges ranges{input.min.data(), input.max.data(), spec};
  const bool per_tensor = input.layout.divides_by_scale();
  Results<T> results(input.layout), untracked(input.layout), alone(input.layout);
  if (in_place) {
    results.y = input.x;
    results.dx = input.dy;
  }
  const T* x = in_place ? results.y.data() : input.x.data();
  const T* dy = in_place ? results.dx.data() : input.dy.data();
  if (!input.layout.per_channel) {
    const int64_t size = input.layout.size();
    results.reach.resize(ReachWords(size));
    for (int64_t thread = 0; thread < grid_size; ++thread) {
      cuda::FindReach(thread, grid_size, size, x, ranges, activation, results.reach.data());
    }
  }
  Results<T>& from_x = input.layout.per_channel ? results : alone;
  if (activation == Activation::kLinear) {
    if (in_place) from_x.dx = input.dy;
    RunOnHost(plan, grid_size,
              cuda::FakeQuantGradWork<T>{in_place ? from_x.dx.data() : input.dy.data(), input.x.data(),
                                         ranges, from_x.dx.data()},
              Pairs{from_x.dmin.data(), from_x.dmax.data()});
  }
  if (!input.layout.per_channel) {
    RunOnHost(plan, grid_size, cuda::ReachGradWork<T>{dy, results.reach.data(), results.dx.data()},
              Pairs{results.dmin.data(), results.dmax.data()});
    Expect(activation != Activation::kLinear || !IsValid({input.min[0], input.max[0]}) ||
               (SameBits(alone.dx, results.dx) && SameBits(alone.dmin, results.dmin) &&
                SameBits(alone.dmax, results.dmax)),
           "the gradient is the same from x and from what its slopes reach");
  }
  RunOnHost(plan, grid_size,
            cuda::FakeQuantWork<T, true>{x, ranges, per_tensor, results.y.data(), {}, activation},
            Pairs{results.min.data(), results.max.data()});
  if (activation != Activation::kLinear) return results;
  RunOnHost(plan, grid_size,
            cuda::FakeQuantWork<T, false>{input.x.data(), ranges, per_tensor, untracked.y.data(), {}},
            Pairs{});
  RunOnHost(plan, grid_size, cuda::MinMaxWork<T>{input.x.data()}, Pairs{alone.min.data(), alone.max.data()});
  Expect(SameBits(untracked.y, results.y), "y is the same with and without a record");
  Expect(SameBits(alone.min, results.min) && SameBits(alone.max, results.max), "MinMax gives the record");
  return results;
}

// Are the sums of a channel those of the CPU, within n * eps * (sum of |dy|)?
template <typename T>
bool SumsAgree(const Case<T>& input, const std::vector<float>& a, const std::vector<float>& b) {
  const int64_t channels = input.layout.channels, inner = input.layout.inner;
  std::vector<double> magnitude(channels);
  for (size_t i = 0; i < input.dy.size(); ++i) {
    magnitude[i / inner % channels] += std::fabs(static_cast<float>(input.dy[i]));
  }
  const double eps = static_cast<double>(input.layout.outer * inner) * std::numeric_limits<float>::epsilon();
  for (int64_t channel = 0; channel < channels; ++channel) {
    if (!(std::fabs(a[channel] - b[channel]) <= eps * magnitude[channel])) return false;
  }
  return true;
}

// Activations only where there is one range for the tensor.
std::vector<std::pair<QuantizerSpec, Activation>> Quantizers(const ChannelLayout& layout) {
  std::vector<std::pair<QuantizerSpec, Activation>> quantizers;
  for (const Activation activation : {Activation::kLinear, Activation::kRelu, Activation::kRelu6}) {
    if (layout.per_channel && activation != Activation::kLinear) continue;
    for (const QuantizerSpec& spec : {QuantizerSpec{8}, QuantizerSpec{4, true}, QuantizerSpec{16}}) {
      quantizers.push_back({spec, activation});
    }
  }
  return quantizers;
}

template <typename T>
void CompareWithCpu(const char* type) {
  const ChannelLayout layouts[] = {
      {1, 1, 0, false},    {1, 1, 1, false},     {1, 1, 255, false},   {1, 1, 300'001, false},  // per tensor
      {0, 5, 7, true},     {4, 0, 3, true},      {6, 7, 0, true},                               // empty
      {5, 1, 40, true},    {1, 3, 70'001, true}, {33, 7, 1000, true},  {700, 3, 32, true},      // runs
      {1, 9, 1, true},     {3, 600, 1, true},    {5000, 12, 1, true},  {900, 65, 1, true},      // columns
      {1, 5000, 31, true}, {2, 700, 9, true},    {20'000, 2, 3, true}, {1, 100'000, 1, true},
  };
  unsigned seed = 0;
  for (const ChannelLayout& layout : layouts) {
    for (const auto& [spec, activation] : Quantizers(layout)) {
      const Case<T> input(layout, seed % 4 == 3, seed);
      const Results<T> expected = OnCpu(input, spec, activation);
      const int64_t num_blocks = Plan(layout).num_blocks;
      const Results<T> got = OnPlan(input, spec, num_blocks + 1, seed % 2 == 0, activation);
      const Results<T> strided = OnPlan(input, spec, 3, false, activation);
      const std::string where = std::string(" for ") + type + " [" + std::to_string(layout.outer) + ", " +
                                std::to_string(layout.channels) + ", " + std::to_string(layout.inner) +
                                "], " + std::to_string(spec.num_bits) + " bits";
      Expect(SameBits(got.y, expected.y), "y has the CPU's bits" + where);
      Expect(got.reach == expected.reach, "what slopes reach is the CPU's" + where);
      Expect(SameBits(got.dx, expected.dx), "dx has the CPU's bits" + where);
      Expect(SameBits(got.min, expected.min), "the record's min has the CPU's bits" + where);
      Expect(SameBits(got.max, expected.max), "the record's max has the CPU's bits" + where);
      Expect(SumsAgree(input, got.dmin, expected.dmin), "dmin is the CPU's sum" + where);
      Expect(SumsAgree(input, got.dmax, expected.dmax), "dmax is the CPU's sum" + where);
      Expect(SameBits(got.y, strided.y) && SameBits(got.dx, strided.dx) && SameBits(got.min, strided.min) &&
                 SameBits(got.max, strided.max) && SameBits(got.dmin, strided.dmin) &&
                 SameBits(got.dmax, strided.dmax),
             "a smaller grid gives the same bits" + where);
      ++seed;
    }
  }
}

void InvalidRangesGiveNan() {
  const Range invalid[] = {{1.0f, -1.0f}, {cuda::kNan, 1.0f}, {-kInfinity, kInfinity}, {2.0f, 2.0f}};
  for (const ChannelLayout& layout : {ChannelLayout{1, 1, 5000, false}, ChannelLayout{40, 3, 1, true}}) {
    for (const Range& range : invalid) {
      Case<float> input(layout, false, 0);
      std::fill(input.min.begin(), input.min.end(), range.min);
      std::fill(input.max.begin(), input.max.end(), range.max);
      const Results<float> got = OnPlan(input, {}, 2, false);
      Expect(AllNan(got.y), "an invalid range gives NaN");
      if (layout.per_channel) {
        Expect(AllNan(got.dx) && AllNan(got.dmin) && AllNan(got.dmax), "so do its gradients");
      } else {
        Expect(got.reach == std::vector<uint64_t>(got.reach.size(), 0), "slopes reach nothing there");
      }
      Expect(std::isfinite(got.min[0]) && std::isfinite(got.max[0]), "a record doesn't depend on the range");
    }
  }
}

void ZerosOfBothSignsGiveOneRecord() {
  for (const ChannelLayout& layout : {ChannelLayout{1, 1, 5000}, ChannelLayout{40, 3, 1}}) {
    Case<float> input(layout, false, 0);
    std::fill(input.x.begin(), input.x.end(), -0.0f);
    const Results<float> got = OnPlan(input, {}, 2, false);
    Expect(SameBits(got.min, std::vector<float>(layout.channels, 0.0f)), "a record's min of -0 is +0");
    Expect(SameBits(got.max, std::vector<float>(layout.channels, 0.0f)), "a record's max of -0 is +0");
  }
}

// Every element is visited once, and every partial is written once and read once, by its channel.
void PlansCoverTheirTensors() {
  for (const ChannelLayout& layout :
       {ChannelLayout{33, 7, 1000, true}, ChannelLayout{5000, 12, 3, true}, ChannelLayout{3, 70'000, 1, true},
        ChannelLayout{1, 1, 1'000'003, false}}) {
    const Plan plan(layout);
    std::vector<int> visits(layout.size()), written(plan.num_partials), read(plan.num_partials);
    for (int64_t block = 0; block < plan.num_blocks; ++block) {
      for (int thread = 0; thread < Plan::kThreads; ++thread) {
        Walk walk = plan.ThreadWalk(block, thread);
        while (walk.count > 0) {
          const int64_t offset = walk.Next();
          ++visits[offset];
          Expect(offset / layout.inner % layout.channels == walk.channel, "a thread stays in its channel");
        }
        const int64_t place = plan.by_column ? plan.ThreadPartial(block, thread) : (thread == 0 ? block : -1);
        if (place >= 0) ++written[place];
      }
    }
    for (int64_t channel = 0; channel < layout.channels; ++channel) {
      for (int64_t i = 0; i < plan.partials_per_channel; ++i) ++read[plan.ChannelPartial(channel, i)];
    }
    const auto once = [](int count) { return count == 1; };
    Expect(std::all_of(visits.begin(), visits.end(), once), "every element is visited once");
    Expect(std::all_of(written.begin(), written.end(), once), "every partial is written once");
    Expect(std::all_of(read.begin(), read.end(), once), "every partial is read once");
  }
}

// No memory is touched here, only places in it are computed.
void TensorsMayHaveMoreThanTwoToThe31Elements() {
  for (const ChannelLayout& layout :
       {ChannelLayout{1, 1, 5'000'000'019, false}, ChannelLayout{50'021, 100'000, 1, true},
        ChannelLayout{70'001, 3, 20'011, true}, ChannelLayout{700'000'001, 2, 3, true},
        ChannelLayout{1, 100'000, 40'001, true}}) {
    const Plan plan(layout);
    int64_t count = 0, last = 0;
    for (int64_t block = 0; block < plan.num_blocks; ++block) {
      for (int thread = 0; thread < Plan::kThreads; ++thread) {
        Walk walk = plan.ThreadWalk(block, thread);
        count += walk.count;
        if (block + 1 < plan.num_blocks) continue;
        while (walk.count > 0) last = std::max(last, walk.Next());
      }
    }
    Expect(count == layout.size(), "threads together visit as many elements as a large tensor has");
    Expect(last == layout.size() - 1, "the last element of a large tensor is visited");
    Expect(plan.num_partials <= 64 * 1024 * 1024, "a large tensor needs little scratch memory");
  }
}

void FittedRangesAreTheCpus() {
  const std::vector<float> min = {-1.0f, kInfinity, 0.5f, -0.0f, -3.0f},
                           max = {2.0f, -kInfinity, 4.0f, 0.0f, -1.0f};
  for (const QuantizerSpec& spec :
       {QuantizerSpec{8}, QuantizerSpec{8, true, true}, QuantizerSpec{16, false, false, true}}) {
    std::vector<float> fitted_min(min.size()), fitted_max(min.size());
    const Pairs fitted{fitted_min.data(), fitted_max.data()};
    for (int64_t first = 0; first < 2; ++first) {
      cuda::FitRanges(first, 2, static_cast<int64_t>(min.size()), {min.data(), max.data(), spec}, fitted);
    }
    for (size_t i = 0; i < min.size(); ++i) {
      const Range expected = FitRange({min[i], max[i]}, spec);
      Expect(fitted_min[i] == expected.min && fitted_max[i] == expected.max, "a fitted range is the CPU's");
    }
  }
}

}  // namespace
}  // namespace dqat::core

int main() {
  dqat::core::CompareWithCpu<float>("float");
  dqat::core::CompareWithCpu<dqat::core::Bfloat16>("bfloat16");
  dqat::core::InvalidRangesGiveNan();
  dqat::core::ZerosOfBothSignsGiveOneRecord();
  dqat::core::PlansCoverTheirTensors();
  dqat::core::TensorsMayHaveMoreThanTwoToThe31Elements();
  dqat::core::FittedRangesAreTheCpus();
  return dqat::core::Report();
}
