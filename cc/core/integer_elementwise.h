// TFLite's int8 operators on single elements, as plain reference loops: ADD, SUB, MUL, TANH and LOGISTIC of
// the builtin kernels, to the bit. After lite/kernels/add.cc, sub.cc, mul.cc and activations.cc.
#ifndef DQAT_CORE_INTEGER_ELEMENTWISE_H_
#define DQAT_CORE_INTEGER_ELEMENTWISE_H_

#include <array>
#include <cstdint>

#include "core/integer_kernels.h"

namespace dqat::core {

// What the integers of a tensor stand for: (q - zero_point) * scale.
struct IntegerGrid {
  float scale = 1.0f;
  int32_t zero_point = 0;
};

// a + b, or a - b.
class IntegerSum {
 public:
  IntegerSum(const IntegerGrid& a, const IntegerGrid& b, const IntegerGrid& output, bool subtract = false);
  // `lowest` is -128, or the zero point of the output with a fused relu.
  int8_t operator()(int8_t a, int8_t b, int32_t lowest = -128) const;

 private:
  int32_t a_zero_, b_zero_, output_zero_;
  QuantizedMultiplier a_, b_, output_;
};

// a * b.
class IntegerProduct {
 public:
  IntegerProduct(const IntegerGrid& a, const IntegerGrid& b, const IntegerGrid& output);
  int8_t operator()(int8_t a, int8_t b) const;

 private:
  int32_t a_zero_, b_zero_, output_zero_;
  QuantizedMultiplier multiplier_;
};

// A function of one int8 value, as the table that TFLite makes of it.
class IntegerTable {
 public:
  IntegerTable(float (*function)(float), const IntegerGrid& input, const IntegerGrid& output);
  int8_t operator()(int8_t x) const { return values_[static_cast<uint8_t>(x)]; }

 private:
  std::array<int8_t, 256> values_;
};

float Logistic(float x);
float HyperbolicTangent(float x);

}  // namespace dqat::core

#endif  // DQAT_CORE_INTEGER_ELEMENTWISE_H_
