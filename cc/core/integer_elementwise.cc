#include "core/integer_elementwise.h"

#include <algorithm>
#include <cmath>

namespace dqat::core {
namespace {

constexpr int kLeftShift = 20;  // of both summands, so that rounding them costs nothing

int8_t Clamp(int32_t x, int32_t lowest = -128) {
  return static_cast<int8_t>(std::min(std::max(x, lowest), 127));
}

}  // namespace

IntegerSum::IntegerSum(const IntegerGrid& a, const IntegerGrid& b, const IntegerGrid& output, bool subtract)
    : a_zero_(a.zero_point), b_zero_(b.zero_point), output_zero_(output.zero_point) {
  const double twice = 2.0f * std::max(a.scale, b.scale);
  a_ = QuantizeMultiplier(a.scale / twice);
  b_ = QuantizeMultiplier(b.scale / twice);
  if (subtract) b_.value = -b_.value;
  output_ = QuantizeMultiplier(twice / ((1 << kLeftShift) * output.scale));
}

int8_t IntegerSum::operator()(int8_t a, int8_t b, int32_t lowest) const {
  const int32_t sum = MultiplyByQuantizedMultiplier((a - a_zero_) * (1 << kLeftShift), a_) +
                      MultiplyByQuantizedMultiplier((b - b_zero_) * (1 << kLeftShift), b_);
  return Clamp(MultiplyByQuantizedMultiplier(sum, output_) + output_zero_, lowest);
}

IntegerProduct::IntegerProduct(const IntegerGrid& a, const IntegerGrid& b, const IntegerGrid& output)
    : a_zero_(a.zero_point), b_zero_(b.zero_point), output_zero_(output.zero_point) {
  multiplier_ = QuantizeMultiplier(a.scale * b.scale / output.scale);  // in float32, as TFLite does
}

int8_t IntegerProduct::operator()(int8_t a, int8_t b) const {
  return Clamp(MultiplyByQuantizedMultiplier((a - a_zero_) * (b - b_zero_), multiplier_) + output_zero_);
}

IntegerTable::IntegerTable(float (*function)(float), const IntegerGrid& input, const IntegerGrid& output) {
  const float inverse_scale = 1.0f / output.scale;
  for (int32_t x = -128; x < 128; ++x) {
    const float value = function(input.scale * static_cast<float>(x - input.zero_point));
    const float level = std::round(value * inverse_scale) + static_cast<float>(output.zero_point);
    values_[static_cast<uint8_t>(x)] = static_cast<int8_t>(std::min(std::max(level, -128.0f), 127.0f));
  }
}

float Logistic(float x) { return 1.0f / (1.0f + std::exp(-x)); }

float HyperbolicTangent(float x) { return std::tanh(x); }

}  // namespace dqat::core
