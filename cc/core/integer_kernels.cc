#include "core/integer_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/fixed_point.h"

namespace dqat::core {
namespace {

constexpr int32_t kInt32Max = std::numeric_limits<int32_t>::max();
constexpr int32_t kInt32Min = std::numeric_limits<int32_t>::min();

// The upper 32 bits of 2 * a * b, rounded to nearest, ties towards plus infinity.
int32_t RoundingDoublingHighMultiply(int32_t a, int32_t b) {
  if (a == kInt32Min && b == kInt32Min) return kInt32Max;
  const int64_t product = static_cast<int64_t>(a) * b;
  const int64_t nudge = product >= 0 ? (1LL << 30) : 1 - (1LL << 30);
  return static_cast<int32_t>((product + nudge) / (1LL << 31));
}

}  // namespace

QuantizedMultiplier QuantizeMultiplier(double factor) {
  if (!(factor > 0.0)) return {};
  int shift = 0;
  const double fraction = std::frexp(factor, &shift);
  int64_t value = std::llround(fraction * static_cast<double>(1LL << 31));
  if (value == 1LL << 31) {
    value /= 2;
    ++shift;
  }
  if (shift < -31) return {};
  if (shift > 30) return {kInt32Max, 30};
  return {static_cast<int32_t>(value), shift};
}

int32_t MultiplyByQuantizedMultiplier(int32_t x, QuantizedMultiplier multiplier, bool ties_upwards) {
  const int left = std::max(multiplier.shift, 0);
  const int right = std::max(-multiplier.shift, 0);
  // Wraps where TFLite's multiplication by a power of two does.
  const int32_t shifted = static_cast<int32_t>(static_cast<uint32_t>(x) << left);
  const int32_t product = RoundingDoublingHighMultiply(shifted, multiplier.value);
  if (!ties_upwards || right == 0) return RoundingDivideByPowerOfTwo(product, right);
  return static_cast<int32_t>((static_cast<int64_t>(product) + (int64_t{1} << (right - 1))) >> right);
}

void FullyConnected(const FullyConnectedShape& shape, const FullyConnectedParameters& parameters,
                    const QuantizedMultiplier* multipliers, const int8_t* input, const int8_t* weight,
                    const int32_t* bias, int8_t* output) {
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t o = 0; o < shape.outputs; ++o) {
      uint32_t sum = bias == nullptr ? 0u : static_cast<uint32_t>(bias[o]);
      for (int64_t i = 0; i < shape.inputs; ++i) {
        const int32_t value = input[b * shape.inputs + i] - parameters.input_zero_point;
        sum += static_cast<uint32_t>(value * weight[o * shape.inputs + i]);
      }
      const int32_t scaled =
          MultiplyByQuantizedMultiplier(static_cast<int32_t>(sum), multipliers[o], parameters.ties_upwards) +
          parameters.output_zero_point;
      output[b * shape.outputs + o] =
          static_cast<int8_t>(std::min(std::max(scaled, parameters.lowest), parameters.highest));
    }
  }
}

}  // namespace dqat::core
