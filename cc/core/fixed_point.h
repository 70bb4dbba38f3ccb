// gemmlowp's fixed-point logistic and tanh (fixedpoint/fixedpoint.h), as TFLite's integer LSTM calls them: of
// the integer reference, and of the simulation in training. Numbers are raw integers; where the point stands
// is in the comments, Qn: n integer bits.
//
// Everything is `static`, and only C headers are included: see rows.h.
#ifndef DQAT_CORE_FIXED_POINT_H_
#define DQAT_CORE_FIXED_POINT_H_

#include <stdint.h>

#include "core/host_device.h"

namespace dqat::core {

// x / 2^exponent, rounded to nearest, ties away from zero; exponent 0 to 31.
DQAT_HOST_DEVICE static inline int32_t RoundingDivideByPowerOfTwo(int32_t x, int exponent) {
  const int32_t mask = (int32_t)((1LL << exponent) - 1);
  const int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
  return (x >> exponent) + ((x & mask) > threshold ? 1 : 0);
}

DQAT_HOST_DEVICE static inline int32_t SaturateToInt16(int32_t x) {
  const int32_t low = x < -32768 ? -32768 : x;
  return low > 32767 ? 32767 : low;
}

namespace fixed_point {

constexpr int16_t kOne = 32767;  // 1 in Q0.15, as near as it gets

DQAT_HOST_DEVICE static inline int16_t Wrap(int32_t x) { return (int16_t)(uint16_t)x; }

// The upper 16 bits of 2 * a * b, rounded to nearest: Qm times Qn is Q(m + n).
DQAT_HOST_DEVICE static inline int16_t Multiply(int16_t a, int16_t b) {
  if (a == -32768 && b == -32768) return kOne;
  const int32_t product = (int32_t)a * b;
  const int32_t nudge = product >= 0 ? (1 << 14) : 1 - (1 << 14);
  return (int16_t)((product + nudge) / (1 << 15));
}

// x / 2^exponent, rounded, as int16.
DQAT_HOST_DEVICE static inline int16_t Halve(int16_t x, int exponent) {
  return (int16_t)RoundingDivideByPowerOfTwo(x, exponent);
}

// x * 2^exponent, saturating: the same number with fewer integer bits.
DQAT_HOST_DEVICE static inline int16_t Lift(int16_t x, int exponent) {
  return (int16_t)SaturateToInt16(x * (1 << exponent));
}

// gemmlowp's constants have 31 fractional bits.
DQAT_HOST_DEVICE static inline int16_t Constant(int32_t q31) {
  return (int16_t)RoundingDivideByPowerOfTwo(q31, 16);
}

// e^x for x in [-1/4, 0), Q0: the Taylor series around -1/8, up to the fourth power.
DQAT_HOST_DEVICE static inline int16_t ExpNearZero(int16_t x) {
  const int16_t base = Constant(1895147668);  // e^(-1/8)
  const int16_t third = Constant(715827883);  // 1/3
  const int16_t y = Wrap(x + (1 << 12));      // x + 1/8
  const int16_t y2 = Multiply(y, y), y3 = Multiply(y2, y), y4 = Multiply(y2, y2);
  const int16_t upper = Halve(Wrap(Multiply(Wrap(Halve(y4, 2) + y3), third) + y2), 1);
  return (int16_t)SaturateToInt16(base + Multiply(base, Wrap(y + upper)));
}

// e^x for x <= 0 with `integer_bits`, as Q0: the quarter that x lies in by the series, the rest as a product
// of e^-(2^k) for the bits of what is left.
DQAT_HOST_DEVICE static inline int16_t ExpOfNegative(int16_t x, int integer_bits) {
  if (x == 0) return kOne;
  const int fraction = 15 - integer_bits;
  const int16_t quarter = (int16_t)(1 << (fraction - 2));
  const int16_t in_quarter = Wrap((x & (quarter - 1)) - quarter);  // in [-1/4, 0)
  int16_t result = ExpNearZero(Lift(in_quarter, integer_bits));
  const int16_t remainder = Wrap(in_quarter - x);
  // e^-(2^exponent) for exponents -2 to 4.
  constexpr int32_t kFactors[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
  for (int exponent = -2; exponent < (integer_bits < 5 ? integer_bits : 5); ++exponent) {
    if (remainder & (1 << (fraction + exponent))) result = Multiply(result, Constant(kFactors[exponent + 2]));
  }
  if (integer_bits > 5 && x < -(1 << (fraction + 5))) return 0;  // below -32
  return result;
}

// 2 / (1 + x) for x in [0, 1), Q0; the result is Q2. Three steps of Newton and Raphson from 48/17 - 32/17 d.
DQAT_HOST_DEVICE static inline int16_t TwiceTheInverse(int16_t x) {
  const int16_t one = 1 << 13;  // Q2
  const int32_t sum = x + kOne;
  const int16_t half = (int16_t)((sum + (sum >= 0 ? 1 : -1)) / 2);
  int16_t y = Wrap(Constant(1515870810) + Multiply(half, Constant(-1010580540)));
  for (int i = 0; i < 3; ++i) {
    const int16_t rest = Wrap(one - Multiply(half, y));
    y = Wrap(y + Lift(Multiply(y, rest), 2));
  }
  return y;
}

}  // namespace fixed_point

// 1 / (1 + e^-x): x in Q3.12, the result in Q0.15. An approximation, as gemmlowp's is.
DQAT_HOST_DEVICE static inline int16_t FixedPointLogistic(int16_t x) {
  if (x == 0) return 1 << 14;
  const int16_t negative = x > 0 ? (int16_t)-x : x;
  const int16_t e = fixed_point::ExpOfNegative(negative, 3);
  const int16_t positive = fixed_point::Lift(fixed_point::TwiceTheInverse(e), 1);
  return x > 0 ? positive : fixed_point::Wrap(fixed_point::kOne - positive);
}

// tanh(x): x with `integer_bits` (0 to 6) before the point, the result in Q0.15.
DQAT_HOST_DEVICE static inline int16_t FixedPointTanh(int16_t x, int integer_bits) {
  if (x == 0) return 0;
  const int16_t negative = x > 0 ? (int16_t)-x : x;
  // (1 - e) / (1 + e) with e = e^(2x): doubling is one more integer bit.
  const int16_t twice = fixed_point::TwiceTheInverse(fixed_point::ExpOfNegative(negative, integer_bits + 1));
  const int16_t size = fixed_point::Lift(fixed_point::Wrap(twice - (1 << 13)), 2);
  return x > 0 ? size : fixed_point::Wrap(-size);
}

}  // namespace dqat::core

#endif  // DQAT_CORE_FIXED_POINT_H_
