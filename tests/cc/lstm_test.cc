// core/lstm.h and core/products.h on every instruction set, and core/integer_lstm.h at its edges. What the
// LSTM computes is held against a composition of TensorFlow's ops in tests/test_lstm_op.py.
#include "core/lstm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cases.h"
#include "core/code_products.h"
#include "core/instruction_set.h"
#include "core/integer_lstm.h"
#include "core/products.h"

namespace dqat::core::testing {
namespace {

// `count` threads that take single tasks.
Parallel Threads(int count) {
  return {count, [count](int64_t tasks, int64_t, const std::function<void(int64_t, int64_t)>& body) {
            std::atomic<int64_t> next{0};
            const auto work = [&] {
              for (int64_t task; (task = next++) < tasks;) body(task, task + 1);
            };
            std::vector<std::thread> threads;
            for (int i = 1; i < count; ++i) threads.emplace_back(work);
            work();
            for (std::thread& thread : threads) thread.join();
          }};
}

std::vector<float> Normal(int64_t count, int seed, float size = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// Memory aligned to 64 bytes, as TensorFlow's is; an overflow is seen by AddressSanitizer.
class Aligned {
 public:
  explicit Aligned(int64_t count)
      : data_(
            static_cast<float*>(::operator new[](std::max<int64_t>(count, 1) * sizeof(float), kAlignment))) {}
  ~Aligned() { ::operator delete[](data_, kAlignment); }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  float* data() { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  float* const data_;
};

// All results of both directions, one after the other.
std::vector<float> Everything(const LstmShape& shape, bool masked, bool backwards, bool time_major,
                              const Parallel& parallel, const float* scales = nullptr) {
  const int64_t states = shape.batch * shape.units, sequence = shape.rows() * shape.units;
  const std::vector<float> x = Normal(shape.rows() * shape.features, 1);
  // Small enough for codes of kScales.
  const std::vector<float> kernel = Normal(shape.features * shape.gates(), 2, 0.2f);
  const std::vector<float> recurrent = Normal(shape.units * shape.gates(), 3, 0.1f);
  const std::vector<float> bias = Normal(shape.gates(), 4), hidden = Normal(states, 5, 0.5f);
  const std::vector<float> cell = Normal(states, 6), slopes = Normal(sequence, 7);
  const std::unique_ptr<bool[]> mask(new bool[shape.rows() + 1]);
  for (int64_t i = 0; i < shape.rows(); ++i) mask[i] = i % 3 != 0;
  const LstmArguments arguments = {x.data(),
                                   kernel.data(),
                                   recurrent.data(),
                                   bias.data(),
                                   hidden.data(),
                                   cell.data(),
                                   masked ? mask.get() : nullptr,
                                   backwards,
                                   time_major,
                                   MakeStateGrid(MakeGrid({-0.9f, 0.9f}, {8, false})),
                                   MakeStateGrid(MakeGrid({-2.0f, 2.0f - 1.0f / 16384.0f}, {16, false})),
                                   scales};
  std::vector<float> outputs(sequence), last_hidden(states), last_cell(states);
  std::vector<float> gates(shape.rows() * shape.gates()), cells(sequence);
  Aligned forward(LstmForwardWorkspace(shape));
  LstmResults results = {outputs.data(), last_hidden.data(), last_cell.data(), {}, {},
                         gates.data(),   cells.data()};
  LstmForward(shape, arguments, &results, forward.data(), parallel);
  std::vector<float> all = outputs;
  const auto add = [&all](const std::vector<float>& part) {
    all.insert(all.end(), part.begin(), part.end());
  };
  for (const auto& part : {last_hidden, last_cell}) add(part);
  add({results.hidden_record.min, results.hidden_record.max, results.cell_record.min,
       results.cell_record.max});

  std::vector<float> to_kernel(kernel.size()), to_recurrent(recurrent.size()), to_bias(bias.size());
  std::vector<float> to_sums(gates.size()), to_hidden(states), to_cell(states), apart;
  for (float* sums : {to_sums.data(), gates.data()}) {  // the second time where the gates stand
    Aligned backward(LstmBackwardWorkspace(shape));
    LstmBackward(
        shape, arguments, outputs.data(), {gates.data(), cells.data()},
        {slopes.data(), hidden.data(), cell.data()},
        {sums, to_kernel.data(), to_recurrent.data(), to_bias.data(), to_hidden.data(), to_cell.data()},
        backward.data(), parallel);
    std::vector<float> found(sums, sums + gates.size());
    for (const auto& part : {to_kernel, to_recurrent, to_bias, to_hidden, to_cell}) {
      found.insert(found.end(), part.begin(), part.end());
    }
    if (apart.empty()) apart = found;
    EXPECT_EQ(FirstDifference(found, apart), -1);
  }
  add(apart);
  return all;
}

// As of a trained layer: sums keep 0 to 2 bits for their second rounding.
constexpr float kScales[] = {0.01f, 0.01f,  0.01f,  0.01f,  0.03f,  0.01f,
                             0.01f, 0.008f, 0.006f, 0.009f, 0.014f, 0.028f};

// Less than a block of units, tails of blocks and panels, more rows than a group; the last one so large that
// threads divide its units.
std::vector<LstmShape> Shapes() {
  return {{1, 1, 1, 1},  {3, 2, 5, 7},  {50, 3, 4, 17}, {7, 4, 70, 33},
          {2, 0, 3, 16}, {0, 2, 3, 16}, {5, 2, 3, 520}};
}

TEST(SpreadTest, AnLstmHasTheSameBitsOnAnyNumberOfThreads) {
  for (const LstmShape& shape : Shapes()) {
    for (const bool masked : {false, true}) {
      const float* scales = masked ? kScales : nullptr;
      const std::vector<float> one = Everything(shape, masked, masked, false, Threads(1), scales);
      for (const int threads : {2, 5}) {
        EXPECT_EQ(FirstDifference(Everything(shape, masked, masked, false, Threads(threads), scales), one),
                  -1)
            << "batch " << shape.batch << ", units " << shape.units << ", threads " << threads;
      }
    }
  }
}

TEST(LstmTest, InstructionSetsHaveTheSameBits) {
  const char* best = InstructionSet();
  for (const float* scales : {static_cast<const float*>(nullptr), kScales}) {
    std::vector<float> first;
    for (const char* name : AvailableInstructionSets()) {
      ASSERT_TRUE(SetInstructionSet(name));
      std::vector<float> all;
      for (const LstmShape& shape : Shapes()) {
        const std::vector<float> part = Everything(shape, true, false, true, Threads(1), scales);
        for (const float value : part) EXPECT_FALSE(std::isnan(value)) << name;
        // Sums of floats are other bits where no instruction multiplies and adds; sums of codes are not.
        const bool is_alike = std::string(name) != "baseline" || scales != nullptr;
        const int64_t outputs = shape.rows() * shape.units + 2 * shape.batch * shape.units;
        if (is_alike) all.insert(all.end(), part.begin(), part.begin() + outputs);
      }
      if (first.empty()) first = all;
      EXPECT_TRUE(all.empty() || FirstDifference(all, first) == -1) << name;
    }
  }
  SetInstructionSet(best);
}

TEST(LstmTest, GradientsHaveTheSameBitsWithFusedMultiplyAdds) {
  const char* best = InstructionSet();
  std::vector<float> first;
  for (const char* name : AvailableInstructionSets()) {
    if (std::string(name) == "baseline") continue;
    ASSERT_TRUE(SetInstructionSet(name));
    std::vector<float> all;
    for (const LstmShape& shape : Shapes()) {
      for (const float* scales : {static_cast<const float*>(nullptr), kScales}) {
        const std::vector<float> part = Everything(shape, true, false, true, Threads(1), scales);
        all.insert(all.end(), part.begin(), part.end());
      }
    }
    if (first.empty()) first = all;
    EXPECT_EQ(FirstDifference(all, first), -1) << name;
  }
  SetInstructionSet(best);
}

TEST(LstmTest, RoundsAsTheIntegerKernelOnlyWithAGridOfTflites) {
  const StateGrid hidden = MakeStateGrid(MakeGrid({-1.0f, 1.0f}, {8, false}));
  const auto cell = [](float bound) {
    return MakeStateGrid(MakeGrid({-bound, bound - bound / 32768.0f}, {16, false}));
  };
  for (const float bound : {1.0f, 8.0f, 64.0f}) {
    const LstmRounding rounding = MakeLstmRounding(kScales, hidden, cell(bound));
    EXPECT_TRUE(rounding.is_integer);
    EXPECT_EQ(rounding.cell_scale, bound / 32768.0f);
    EXPECT_EQ(rounding.input_shift[0], 0);   // 0.01 * 0.03 * 2^12 is over 1
    EXPECT_EQ(rounding.hidden_shift[0], 2);  // 2 / 255 * 0.006 * 2^12 is under 1/4
    EXPECT_EQ(rounding.x_codes, 1.0f / 0.01f);
    EXPECT_EQ(rounding.hidden_factors[3], hidden.scale * 0.028f);
  }
  const StateGrid unknown = MakeStateGrid(MakeGrid({}, {8, false}));
  EXPECT_FALSE(MakeLstmRounding(nullptr, hidden, cell(8.0f)).is_integer);
  EXPECT_FALSE(MakeLstmRounding(kScales, unknown, cell(8.0f)).is_integer);
  EXPECT_FALSE(MakeLstmRounding(kScales, hidden, unknown).is_integer);
  for (const float bound : {0.5f, 128.0f, 3.0f}) {
    EXPECT_FALSE(MakeLstmRounding(kScales, hidden, cell(bound)).is_integer) << bound;
  }
  for (const float wrong : {0.0f, -1.0f, kNan, kInf}) {
    for (const int which : {0, 6, 11}) {
      float scales[12];
      std::copy_n(kScales, 12, scales);
      scales[which] = wrong;
      EXPECT_FALSE(MakeLstmRounding(scales, hidden, cell(8.0f)).is_integer) << wrong << " at " << which;
    }
  }
}

TEST(LstmTest, ActivationsAreWithinThreeUlps) {
  const auto ulps = [](float got, double expected) {
    const float nearest = static_cast<float>(expected);
    return std::fabs(got - expected) / (std::nextafter(std::fabs(nearest), kInf) - std::fabs(nearest));
  };
  double sigmoid = 0.0, tanh = 0.0;
  for (int i = -2000000; i <= 2000000; ++i) {
    const float x = static_cast<float>(i) * 5e-6f;  // -10 to 10
    sigmoid = std::max(sigmoid, ulps(Sigmoid(x), 1.0 / (1.0 + std::exp(-static_cast<double>(x)))));
    if (i != 0) tanh = std::max(tanh, ulps(Tanh(x), std::tanh(static_cast<double>(x))));
  }
  for (float x = 1e-30f; x < 1e-3f; x *= 1.7f) tanh = std::max(tanh, ulps(Tanh(x), std::tanh(double{x})));
  EXPECT_LE(sigmoid, 3.0);
  EXPECT_LE(tanh, 3.0);
  EXPECT_EQ(Tanh(0.0f), 0.0f);
  EXPECT_TRUE(std::isnan(Tanh(kNan)));
  EXPECT_TRUE(std::isnan(Sigmoid(kNan)));
}

TEST(LstmTest, AProductIsWithinRoundingOfTheExactOne) {
  const char* best = InstructionSet();
  for (const char* name : AvailableInstructionSets()) {
    ASSERT_TRUE(SetInstructionSet(name));
    for (const auto& [rows, columns, depth] :
         {std::tuple{1, 1, 1}, {13, 65, 40}, {200, 130, 7}, {5, 64, 0}}) {
      const std::vector<float> a = Normal(rows * depth, 1), b = Normal(columns * depth, 2);
      std::vector<float> product(rows * columns, kNan);
      Aligned packed(PackedSize(columns, depth));
      // b is [columns, depth]: both ways of packing.
      Pack(columns, depth, {b.data(), depth, 1}, packed.data(), Threads(1));
      Multiply(rows, columns, depth, {a.data(), depth, 1}, packed.data(), product.data(), columns,
               Threads(2));
      for (int r = 0; r < rows; ++r) {
        for (int j = 0; j < columns; ++j) {
          double sum = 0.0, size = 0.0;
          for (int k = 0; k < depth; ++k) {
            sum += double{a[r * depth + k]} * b[j * depth + k];
            size += std::fabs(double{a[r * depth + k]} * b[j * depth + k]);
          }
          ASSERT_LE(std::fabs(product[r * columns + j] - sum), 1.2e-7 * (depth + 1) * size) << name;
        }
      }
    }
  }
  SetInstructionSet(best);
}

std::vector<int16_t> Codes(int64_t count, int most, int seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> any(-most, most);
  std::vector<int16_t> codes(count);
  for (int16_t& code : codes) code = static_cast<int16_t>(any(generator));
  return codes;
}

TEST(CodeProductsTest, EveryTileGivesTheExactSumOfTheLargestCodes) {
  for (const CodeKernels* kernels : AvailableCodeTiles()) {
    for (const int64_t pairs : {int64_t{0}, int64_t{1}, int64_t{37}, kMostPairs}) {
      const int64_t stride = 2 * pairs + 6;
      std::vector<int16_t> left = Codes(kTileRows * stride, 511, 1);
      Aligned memory(pairs * kPanelColumns);
      auto* panel = reinterpret_cast<int8_t*>(memory.data());
      const std::vector<int16_t> right = Codes(pairs * kPanelColumns * 2, 127, 2);
      std::copy(right.begin(), right.end(), panel);
      if (pairs == kMostPairs) {  // the first sum is the largest that there may be
        std::fill_n(left.begin(), 2 * pairs, -511);
        for (int64_t p = 0; p < pairs; ++p) std::fill_n(panel + p * kPanelColumns * 2, 2, -128);
      }
      std::vector<float> factors(kPanelColumns), results(kTileRows * 70, kNan);
      for (int j = 0; j < kPanelColumns; ++j) factors[j] = 1e-3f * static_cast<float>(j + 1);
      for (int64_t rows = 1; rows <= kTileRows; ++rows) {
        kernels->tile(rows, pairs, left.data(), stride, panel, factors.data(), results.data(), 70);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t j = 0; j < kPanelColumns; ++j) {
            int64_t sum = 0;
            for (int64_t k = 0; k < 2 * pairs; ++k) {
              sum += left[r * stride + k] * panel[(k / 2 * kPanelColumns + j) * 2 + k % 2];
            }
            ASSERT_EQ(results[r * 70 + j], static_cast<float>(sum) * factors[j]) << kernels->name;
          }
        }
      }
    }
  }
}

TEST(CodeProductsTest, EncodingFindsTheNearestCodeAndWhatHasNone) {
  for (const CodeKernels* kernels : AvailableCodeTiles()) {
    std::vector<float> values(2 * kPanelColumns), steps(kPanelColumns, 4.0f);
    for (size_t i = 0; i < values.size(); ++i) values[i] = 0.25f * (static_cast<float>(i) - 64.0f) + 0.1f;
    std::vector<int16_t> codes(2 * kPanelColumns);
    std::vector<int8_t> pairs(2 * kPanelColumns);
    const float *even = values.data(), *odd = even + kPanelColumns;
    EXPECT_TRUE(kernels->encode(2 * kPanelColumns, even, 4.0f, 511.0f, codes.data()));
    EXPECT_TRUE(kernels->encode_pairs(even, odd, steps.data(), pairs.data()));
    for (int i = 0; i < 2 * kPanelColumns; ++i) {
      EXPECT_EQ(codes[i], i - 64) << kernels->name;
      EXPECT_EQ(pairs[i % kPanelColumns * 2 + i / kPanelColumns], i - 64) << kernels->name;
    }
    for (const float wrong : {128.0f, -200.0f, kInf, kNan}) {
      for (const int at : {0, 31, 127}) {
        std::vector<float> spoilt = values;
        spoilt[at] = wrong;
        even = spoilt.data(), odd = even + kPanelColumns;
        EXPECT_FALSE(kernels->encode(2 * kPanelColumns, even, 4.0f, 511.0f, codes.data()));
        EXPECT_FALSE(kernels->encode_pairs(even, odd, steps.data(), pairs.data()));
      }
    }
    for (const auto& [value, fits] :
         {std::pair{31.75f, true}, {-32.0f, true}, {32.0f, false}, {-32.25f, false}}) {
      values[5] = value;
      even = values.data(), odd = even + kPanelColumns;
      EXPECT_EQ(kernels->encode_pairs(even, odd, steps.data(), pairs.data()), fits) << value;
      if (fits) {
        EXPECT_EQ(pairs[10], value * 4.0f);
      }
    }
  }
}

TEST(ProductsTest, APanelOfCodesGivesTheProductOfTheValuesThatTheyStandFor) {
  const char* best = InstructionSet();
  constexpr int64_t kRows = 13, kDepth = 41, kStride = 50;
  constexpr float kScale = 0.125f;
  for (const char* name : AvailableInstructionSets()) {
    ASSERT_TRUE(SetInstructionSet(name));
    const std::vector<int16_t> codes = Codes(kDepth * kPanelColumns, 256, 1);
    std::vector<float> values(codes.size());
    std::transform(codes.begin(), codes.end(), values.begin(), [](int16_t code) { return code * kScale; });
    Aligned memory(kDepth * kPanelColumns / 2);
    auto* panel = reinterpret_cast<UpperHalf*>(memory.data());
    for (int64_t k = 0; k < kDepth; ++k) {
      const float* columns = values.data() + k * kPanelColumns;
      ASSERT_TRUE(ProductTiles().encode_columns(columns, 1.0f / kScale, panel + k * kPanelColumns));
    }
    // Whole numbers, so that every sum is exact.
    const std::vector<int16_t> whole = Codes(kRows * kStride, 100, 2);
    const std::vector<float> left(whole.begin(), whole.end());
    std::vector<float> memory_of_results(kRows * kPanelColumns + 1, kNan);
    float* results = memory_of_results.data() + 1;  // as any address will do
    MultiplyCodePanel(kRows, kDepth, {left.data(), kStride, 1}, panel, kScale, results, false);
    MultiplyCodePanel(kRows, kDepth, {left.data(), kStride, 1}, panel, 2 * kScale, results, true);
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t j = 0; j < kPanelColumns; ++j) {
        float sum = 0.0f;
        for (int64_t k = 0; k < kDepth; ++k) sum += left[r * kStride + k] * values[k * kPanelColumns + j];
        ASSERT_EQ(results[r * kPanelColumns + j], 3 * sum) << name;
      }
    }
    for (const float wrong : {257.0f, -300.0f, kInf, kNan}) {
      std::vector<float> columns(kPanelColumns, 1.0f);
      EXPECT_TRUE(ProductTiles().encode_columns(columns.data(), 256.0f, panel));
      columns[63] = wrong;
      EXPECT_FALSE(ProductTiles().encode_columns(columns.data(), 1.0f, panel)) << wrong;
    }
  }
  SetInstructionSet(best);
}

TEST(IntegerLstmTest, EveryInputOfTheFixedPointFunctionsIsDefined) {
  for (int x = -32768; x <= 32767; ++x) {
    const int16_t value = static_cast<int16_t>(x);
    EXPECT_NEAR(FixedPointLogistic(value) / 32768.0, 1.0 / (1.0 + std::exp(-x / 4096.0)), 1.0 / 4096);
    for (int bits = 0; bits <= 6; ++bits) {
      EXPECT_NEAR(FixedPointTanh(value, bits) / 32768.0, std::tanh(std::ldexp(x, bits - 15)), 1.0 / 2048);
    }
  }
}

TEST(IntegerLstmTest, SaturatesWhereEverythingIsExtreme) {
  const IntegerLstmShape shape = {2, 5, 3, 4};
  IntegerLstmParameters parameters;
  parameters.input_zero_point = -128;
  parameters.hidden_zero_point = 127;
  parameters.cell_exponent = -9;
  parameters.hidden_multiplier = QuantizeMultiplier(std::ldexp(1.0, -15));
  for (int gate = 0; gate < 4; ++gate) {
    parameters.input_multipliers[gate] = parameters.recurrent_multipliers[gate] = QuantizeMultiplier(1.0);
  }
  const std::vector<int8_t> input(2 * 5 * 3, 127), kernel(4 * 4 * 3, 127), recurrent(4 * 4 * 4, -127);
  const std::vector<int32_t> bias(16, 1 << 20);
  std::vector<int8_t> hidden(8, -128), output(2 * 5 * 4);
  std::vector<int16_t> cell(8, 32767);
  IntegerLstm(shape, parameters, input.data(), kernel.data(), recurrent.data(), bias.data(), hidden.data(),
              cell.data(), output.data());
  EXPECT_EQ(output.back(), 127);
  EXPECT_EQ(cell.back(), 32767);
}

}  // namespace
}  // namespace dqat::core::testing
