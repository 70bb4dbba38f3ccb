// Runs the code of the CUDA kernels of histograms and learned steps (core/cuda_histogram_work.h,
// core/cuda_learned_work.h) one thread after the other on the CPU, and compares with the CPU kernels:
// outputs, counts, percentiles and gradients to x to the bit; sums within the error of summation. Prints one
// line a failure, and exits with 1 after any.
#include <random>

#include "core/cuda_histogram_work.h"
#include "core/cuda_learned_work.h"
#include "core/histogram_range.h"
#include "host_block.h"

namespace dqat::core {
namespace {

std::vector<float> Normal(int64_t size, unsigned seed, float width = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, width);
  std::vector<float> values(size);
  for (float& value : values) value = normal(generator);
  return values;
}

// Values that are all exact in a 16-bit element, so that the CPU kernels can take them as float.
template <typename T>
std::vector<T> Rounded(const std::vector<float>& values) {
  std::vector<T> rounded;
  for (const float value : values) rounded.push_back(static_cast<T>(value));
  return rounded;
}

template <typename T>
std::vector<float> Widened(const std::vector<T>& values) {
  return std::vector<float>(values.begin(), values.end());
}

std::vector<int64_t> CountOnCpu(const std::vector<float>& x) {
  const ChannelLayout layout{1, 1, static_cast<int64_t>(x.size())};
  const BlockPlan plan(layout);
  std::vector<int64_t> counts(HistogramGrid::kBins);
  for (int64_t block = 0; block < plan.num_blocks; ++block) {
    CountBlock(layout, plan, block, x.data(), counts.data());
  }
  return counts;
}

template <typename Work>
std::vector<int64_t> CountOnPlan(const Plan& plan, int64_t grid_size, const Work& work, Pairs results) {
  HostBlock block;
  std::vector<float> scratch(2 * plan.num_partials, cuda::kNan);
  const Pairs partials{scratch.data(), scratch.data() + plan.num_partials};
  std::vector<int64_t> counts(HistogramGrid::kBins);
  std::vector<uint32_t> tally(cuda::kTallySize, 12345);  // shared memory starts with anything
  for (int64_t first = 0; first < grid_size; ++first) {
    cuda::CountBlocks(block, first, grid_size, plan, work, partials, tally.data(), counts.data());
  }
  cuda::MergePartials<cuda::MergeRecord>(block, 0, 1, plan, partials, results);
  return counts;
}

template <typename T>
void CountsAreTheCpus() {
  for (const int64_t size : {0, 1, 255, 4096, 300'001}) {
    std::vector<float> values = Normal(size, static_cast<unsigned>(size), 3.0f);
    // Zeros as behind a ReLU, and what lies outside the grid's bins or in none.
    const float special[] = {0.0f, -0.0f, 1e-12f, 1e30f, -3.4e38f, cuda::kNan, kInfinity, -kInfinity};
    for (size_t i = 0; i < values.size(); ++i) {
      if (i % 3 == 0) values[i] = std::fmax(values[i], 0.0f);
      if (i % 37 == 5) values[i] = special[i / 37 % 8];
    }
    const std::vector<T> x = Rounded<T>(values);
    const ChannelLayout layout{1, 1, size};
    const Plan plan(layout);
    const std::vector<int64_t> expected = CountOnCpu(Widened(x));
    const float min = -1.5f, max = 2.0f;
    std::vector<T> y(size), tracked(size);
    std::vector<float> records[3] = {{0, 0}, {0, 0}, {0, 0}};
    const auto record = [&](int i) { return Pairs{records[i].data(), records[i].data() + 1}; };
    const cuda::FakeQuantWork<T, true> work{x.data(), {&min, &max, {}}, true, y.data(), {}};
    cuda::FakeQuantWork<T, true> without = work;
    without.y = tracked.data();
    Expect(CountOnPlan(plan, plan.num_blocks + 1, work, record(0)) == expected, "counts are the CPU's");
    RunOnHost(plan, 1, without, record(1));
    Expect(CountOnPlan(plan, 3, cuda::MinMaxWork<T>{x.data()}, record(2)) == expected,
           "counts are the CPU's on a small grid, and without quantizing");
    Expect(SameBits(y, tracked), "counting changes no output");
    Expect(SameBits(records[0], records[1]) && SameBits(records[2], records[1]),
           "counting changes no record");
  }
}

struct Found {
  float min, max;
};

Found PercentilesOnHost(const std::vector<int64_t>& counts, const Range& extremes, double lower,
                        double upper) {
  HostBlock block;
  std::vector<double> sums(PercentileSearch::kSegments);
  Found found;
  cuda::FindPercentiles(block, {counts.data(), &extremes.min, &extremes.max}, &lower, &upper, sums.data(),
                        {&found.min, &found.max});
  return found;
}

Found MinimumErrorOnHost(const std::vector<int64_t>& counts, const Range& extremes,
                         const QuantizerSpec& spec) {
  HostBlock block;
  Found found;
  cuda::FindMinimumError(block, {counts.data(), &extremes.min, &extremes.max}, spec,
                         {&found.min, &found.max});
  return found;
}

struct Counted {
  std::vector<int64_t> counts;
  Range extremes;
};

std::vector<Counted> Histograms() {
  std::vector<Counted> histograms = {{std::vector<int64_t>(HistogramGrid::kBins), Range()},
                                     {std::vector<int64_t>(HistogramGrid::kBins), {0.0f, 0.0f}}};
  for (unsigned seed = 0; seed < 5; ++seed) {
    std::vector<float> x = Normal(20'000, seed, std::ldexp(1.0f, 3 * static_cast<int>(seed) - 5));
    if (seed == 3) std::transform(x.begin(), x.end(), x.begin(), [](float v) { return std::fabs(v); });
    if (seed == 4) x.push_back(3e6f);
    Range extremes{0.0f, 0.0f};
    for (const float value : x) {
      extremes = {std::fmin(extremes.min, value), std::fmax(extremes.max, value)};
    }
    histograms.push_back({CountOnCpu(x), extremes});
  }
  return histograms;
}

void PercentilesAreTheCpus() {
  for (const Counted& histogram : Histograms()) {
    for (const double percent : {100.0, 99.99, 99.0, 75.5, 50.1}) {
      const Range expected =
          PercentileRange(histogram.counts.data(), histogram.extremes, 100 - percent, percent);
      const Found found = PercentilesOnHost(histogram.counts, histogram.extremes, 100 - percent, percent);
      Expect(found.min == expected.min && found.max == expected.max, "percentiles are the CPU's");
    }
  }
}

// The mean squared error of a fitted range, by the middle of each bin: enough to tell two ranges apart.
double Error(const Counted& histogram, const Range& range, const QuantizerSpec& spec) {
  const Grid grid = MakeGrid(FitRange(range, spec), spec);
  double error = 0.0, total = 0.0;
  for (int bin = 0; bin < HistogramGrid::kBins; ++bin) {
    const BinInterval interval(bin, histogram.extremes);
    const double count = static_cast<double>(histogram.counts[bin]);
    if (count == 0.0 || bin == HistogramGrid::kSideBins) continue;
    error += count / interval.width *
             (SquaredErrorIntegral(interval.low + interval.width, grid) -
              SquaredErrorIntegral(interval.low, grid));
    total += count;
  }
  return error / total;
}

void MinimumErrorsAreTheCpus() {
  for (const Counted& histogram : Histograms()) {
    for (const QuantizerSpec& spec : {QuantizerSpec{8}, QuantizerSpec{2}, QuantizerSpec{4, true, true},
                                      QuantizerSpec{16, false, false, true}}) {
      const Range cpu = MinimumErrorRange(histogram.counts.data(), histogram.extremes, spec);
      const Found found = MinimumErrorOnHost(histogram.counts, histogram.extremes, spec);
      if (found.min == cpu.min && found.max == cpu.max) continue;
      const double expected = Error(histogram, cpu, spec);
      const double error = Error(histogram, {found.min, found.max}, spec);
      Expect(std::fabs(error - expected) <= 1e-9 * expected,
             "another range than the CPU's has the same error");
    }
  }
}

void WrongArgumentsGiveRangesOfNan() {
  const Counted good = Histograms().back();
  Counted negative = good, outside = good, infinite = good;
  negative.counts[77] = -1;
  outside.extremes = {1.0f, 2.0f};
  infinite.extremes = {-1.0f, kInfinity};
  for (const Counted& bad : {negative, outside, infinite}) {
    const Found percentiles = PercentilesOnHost(bad.counts, bad.extremes, 1.0, 99.0);
    const Found errors = MinimumErrorOnHost(bad.counts, bad.extremes, {});
    Expect(AllNan({percentiles.min, percentiles.max, errors.min, errors.max}), "wrong arguments give NaN");
  }
  const double wrong[][2] = {{-0.1, 99.0}, {50.0, 99.0}, {1.0, 50.0}, {1.0, 101.0}, {std::nan(""), 99.0}};
  for (const auto& [lower, upper] : wrong) {
    const Found found = PercentilesOnHost(good.counts, good.extremes, lower, upper);
    Expect(AllNan({found.min, found.max}), "wrong percentiles give NaN");
  }
}

template <typename T>
struct Learned {
  std::vector<T> y, dx;
  std::vector<float> min, max, dstep;
};

// bool* for a kernel: std::vector<bool> has none.
using Flags = std::vector<uint8_t>;
const bool* Pointer(const Flags& flags) { return reinterpret_cast<const bool*>(flags.data()); }

template <typename T>
Learned<T> LearnedOnCpu(const ChannelLayout& layout, const QuantizerSpec& spec, const std::vector<T>& x,
                        const std::vector<T>& dy, const std::vector<float>& steps, const Flags& is_signed,
                        int64_t elements) {
  const BlockPlan plan(layout);
  const std::vector<float> values = Widened(x), slopes = Widened(dy);
  std::vector<float> y(x.size()), dx(x.size()), first(plan.partials), second(plan.partials);
  Learned<T> results{{},
                     {},
                     std::vector<float>(layout.channels),
                     std::vector<float>(layout.channels),
                     std::vector<float>(layout.channels)};
  GridTable grids(layout, plan);
  for (int64_t i = 0; i < layout.channels; ++i) {
    grids.Set(i, LearnedStep(steps[i], is_signed[i] != 0, spec).grid());
  }
  const float levels = LearnedStep(1.0f, true, spec).levels();
  for (int64_t block = 0; block < plan.num_blocks; ++block) {
    FakeQuantBlock(layout, plan, block, grids, values.data(), y.data(), {first.data(), second.data()});
  }
  MergeRecords(layout, plan, {first.data(), second.data()}, results.min.data(), results.max.data());
  for (int64_t block = 0; block < plan.num_blocks; ++block) {
    LearnedStepGradBlock(layout, plan, block, grids, levels, slopes.data(), values.data(), dx.data(),
                         first.data());
  }
  MergeSums(layout, plan, first.data(), results.dstep.data());
  for (int64_t i = 0; i < layout.channels; ++i) {
    results.dstep[i] =
        LearnedStep(steps[i], is_signed[i] != 0, spec).ScaledGradient(results.dstep[i], elements);
  }
  results.y = Rounded<T>(y);
  results.dx = Rounded<T>(dx);
  return results;
}

// By channel: the sum of the magnitudes of what is added up for the gradient to the step.
template <typename T>
std::vector<float> DstepSizes(const ChannelLayout& layout, const QuantizerSpec& spec, const std::vector<T>& x,
                              const std::vector<T>& dy, const std::vector<float>& steps,
                              const Flags& is_signed, int64_t elements) {
  std::vector<float> sizes(layout.channels);
  for (int64_t i = 0; i < layout.size(); ++i) {
    const int64_t channel = i / layout.inner % layout.channels;
    const LearnedStep learned(steps[channel], is_signed[channel] != 0, spec);
    const Grid grid = learned.grid();
    const float share = StepSlope<true>(x[i], grid.nudged_min, grid.nudged_max, grid.scale, grid.inv_scale,
                                        grid.zero_level, learned.levels());
    sizes[channel] += std::fabs(learned.ScaledGradient(share * dy[i], elements));
  }
  return sizes;
}

template <typename T>
void LearnedStepsAreTheCpus() {
  const ChannelLayout layouts[] = {{1, 1, 0, false},   {1, 1, 1, false},   {1, 1, 100'001, false},
                                   {5, 1, 40, true},   {33, 7, 300, true}, {700, 65, 1, true},
                                   {1, 3000, 9, true}, {0, 5, 7, true}};
  unsigned seed = 0;
  for (const ChannelLayout& layout : layouts) {
    for (const QuantizerSpec& spec : {QuantizerSpec{8}, QuantizerSpec{2, true}, QuantizerSpec{16}}) {
      ++seed;
      const std::vector<T> x = Rounded<T>(Normal(layout.size(), seed));
      const std::vector<T> dy = Rounded<T>(Normal(layout.size(), seed + 1000));
      std::vector<float> steps;
      Flags is_signed;
      for (int64_t i = 0; i < layout.channels; ++i) {
        // Among them channels without a step.
        steps.push_back((i + seed) % 4 == 0 ? 0.0f : std::ldexp(1.3f, 1 - spec.num_bits) / (1 + i % 3));
        is_signed.push_back((i + seed) % 3 != 0);
      }
      const int64_t elements = 77;
      const Learned<T> expected = LearnedOnCpu(layout, spec, x, dy, steps, is_signed, elements);
      const Plan plan(layout);
      for (const int64_t grid_size : {plan.num_blocks + 1, int64_t{3}}) {
        const cuda::Steps all{steps.data(), Pointer(is_signed), spec};
        Learned<T> got{x, dy, expected.min, expected.max, expected.dstep};
        // In place, as TensorFlow may call it.
        RunOnHost(plan, grid_size,
                  cuda::LearnedGradWork<T>{
                      got.dx.data(), x.data(), all, layout.divides_by_scale(), got.dx.data(), {}, 0.0f},
                  cuda::StepGradients{all, &elements, got.dstep.data()});
        RunOnHost(plan, grid_size,
                  cuda::FakeQuantWork<T, true, cuda::Steps>{
                      got.y.data(), all, layout.divides_by_scale(), got.y.data(), {}},
                  Pairs{got.min.data(), got.max.data()});
        const std::string where = " for [" + std::to_string(layout.outer) + ", " +
                                  std::to_string(layout.channels) + ", " + std::to_string(layout.inner) +
                                  "], " + std::to_string(spec.num_bits) + " bits";
        for (int64_t i = 0; i < layout.size(); ++i) {
          const int64_t channel = i / layout.inner % layout.channels;
          // What passes through unquantized is as it was.
          const bool passes = steps[channel] == 0.0f;
          const T y = passes ? x[i] : expected.y[i];
          if (!SameBits<T>({got.y[i]}, {y})) Expect(false, "y of a learned step has the CPU's bits" + where);
        }
        Expect(SameBits(got.dx, expected.dx), "dx of a learned step has the CPU's bits" + where);
        Expect(SameBits(got.min, expected.min) && SameBits(got.max, expected.max), "the record" + where);
        // Of float32 sums: far below the sum of the summands' magnitudes.
        const std::vector<float> bound = DstepSizes(layout, spec, x, dy, steps, is_signed, elements);
        for (int64_t i = 0; i < layout.channels; ++i) {
          Expect(std::fabs(got.dstep[i] - expected.dstep[i]) <= 1e-5f * bound[i],
                 "dstep is the CPU's sum" + where);
        }
      }
    }
  }
}

void ImpossibleStepsGiveNan() {
  for (const float step : {-0.1f, cuda::kNan, kInfinity, 3e38f}) {
    const std::vector<float> x = Normal(5000, 1);
    const ChannelLayout layout{1, 1, 5000};
    const bool is_signed = true;
    const int64_t elements = 1;
    const cuda::Steps steps{&step, &is_signed, {}};
    std::vector<float> y(x.size()), dx(x.size()), record(2), dstep(1);
    RunOnHost(Plan(layout), 2,
              cuda::LearnedGradWork<float>{x.data(), x.data(), steps, true, dx.data(), {}, 0.0f},
              cuda::StepGradients{steps, &elements, dstep.data()});
    RunOnHost(Plan(layout), 2,
              cuda::FakeQuantWork<float, true, cuda::Steps>{x.data(), steps, true, y.data(), {}},
              Pairs{record.data(), record.data() + 1});
    Expect(AllNan(y) && AllNan(dx) && AllNan(dstep), "an impossible step gives NaN");
    Expect(std::isfinite(record[0]) && std::isfinite(record[1]), "a record doesn't depend on the step");
  }
}

}  // namespace
}  // namespace dqat::core

int main() {
  dqat::core::CountsAreTheCpus<float>();
  dqat::core::CountsAreTheCpus<dqat::core::Bfloat16>();
  dqat::core::PercentilesAreTheCpus();
  dqat::core::MinimumErrorsAreTheCpus();
  dqat::core::WrongArgumentsGiveRangesOfNan();
  dqat::core::LearnedStepsAreTheCpus<float>();
  dqat::core::LearnedStepsAreTheCpus<dqat::core::Bfloat16>();
  dqat::core::ImpossibleStepsGiveNan();
  return dqat::core::Report();
}
