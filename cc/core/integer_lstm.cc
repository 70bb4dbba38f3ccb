#include "core/integer_lstm.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace dqat::core {
namespace {

constexpr int32_t kMax = 32767, kMin = -32768;
constexpr int16_t kOne = kMax;  // 1 in Q0.15, as near as it gets

int16_t Saturate(int32_t x) { return static_cast<int16_t>(std::min(std::max(x, kMin), kMax)); }

int16_t Wrap(int32_t x) { return static_cast<int16_t>(static_cast<uint16_t>(x)); }

// Fixed-point numbers are int16 raw values; where the point stands is in the comments, Qn: n integer bits.

// The upper 16 bits of 2 * a * b, rounded to nearest: Qm times Qn is Q(m + n).
int16_t Multiply(int16_t a, int16_t b) {
  if (a == kMin && b == kMin) return kMax;
  const int32_t product = static_cast<int32_t>(a) * b;
  const int32_t nudge = product >= 0 ? (1 << 14) : 1 - (1 << 14);
  return static_cast<int16_t>((product + nudge) / (1 << 15));
}

// x / 2^exponent, rounded, as int16.
int16_t Halve(int16_t x, int exponent) {
  return static_cast<int16_t>(RoundingDivideByPowerOfTwo(x, exponent));
}

// x * 2^exponent, saturating: the same number with fewer integer bits.
int16_t Lift(int16_t x, int exponent) {
  return Saturate(static_cast<int32_t>(static_cast<int64_t>(x) * (int64_t{1} << exponent)));
}

// gemmlowp's constants have 31 fractional bits.
int16_t Constant(int32_t q31) { return static_cast<int16_t>(RoundingDivideByPowerOfTwo(q31, 16)); }

// e^x for x in [-1/4, 0), Q0: the Taylor series around -1/8, up to the fourth power.
int16_t ExpNearZero(int16_t x) {
  const int16_t base = Constant(1895147668);  // e^(-1/8)
  const int16_t third = Constant(715827883);  // 1/3
  const int16_t y = Wrap(x + (1 << 12));      // x + 1/8
  const int16_t y2 = Multiply(y, y), y3 = Multiply(y2, y), y4 = Multiply(y2, y2);
  const int16_t upper = Halve(Wrap(Multiply(Wrap(Halve(y4, 2) + y3), third) + y2), 1);
  return Saturate(base + Multiply(base, Wrap(y + upper)));
}

// e^x for x <= 0 with `integer_bits`, as Q0: the quarter that x lies in by the series, the rest as a product
// of e^-(2^k) for the bits of what is left.
int16_t ExpOfNegative(int16_t x, int integer_bits) {
  if (x == 0) return kOne;
  const int fraction = 15 - integer_bits;
  const int16_t quarter = static_cast<int16_t>(1 << (fraction - 2));
  const int16_t in_quarter = Wrap((x & (quarter - 1)) - quarter);  // in [-1/4, 0)
  int16_t result = ExpNearZero(Lift(in_quarter, integer_bits));
  const int16_t remainder = Wrap(in_quarter - x);
  // e^-(2^exponent) for exponents -2 to 4.
  constexpr int32_t kFactors[] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
  for (int exponent = -2; exponent < std::min(integer_bits, 5); ++exponent) {
    if (remainder & (1 << (fraction + exponent))) result = Multiply(result, Constant(kFactors[exponent + 2]));
  }
  if (integer_bits > 5 && x < -(1 << (fraction + 5))) return 0;  // below -32
  return result;
}

// 2 / (1 + x) for x in [0, 1), Q0; the result is Q2. Three steps of Newton and Raphson from 48/17 - 32/17 d.
int16_t TwiceTheInverse(int16_t x) {
  const int16_t one = 1 << 13;  // Q2
  const int32_t sum = x + kOne;
  const int16_t half = static_cast<int16_t>((sum + (sum >= 0 ? 1 : -1)) / 2);
  int16_t y = Wrap(Constant(1515870810) + Multiply(half, Constant(-1010580540)));
  for (int i = 0; i < 3; ++i) {
    const int16_t rest = Wrap(one - Multiply(half, y));
    y = Wrap(y + Lift(Multiply(y, rest), 2));
  }
  return y;
}

}  // namespace

int16_t FixedPointLogistic(int16_t x) {
  if (x == 0) return 1 << 14;
  const int16_t negative = x > 0 ? static_cast<int16_t>(-x) : x;
  const int16_t positive = Lift(TwiceTheInverse(ExpOfNegative(negative, 3)), 1);
  return x > 0 ? positive : Wrap(kOne - positive);
}

int16_t FixedPointTanh(int16_t x, int integer_bits) {
  if (x == 0) return 0;
  const int16_t negative = x > 0 ? static_cast<int16_t>(-x) : x;
  // (1 - e) / (1 + e) with e = e^(2x): doubling is one more integer bit.
  const int16_t twice = TwiceTheInverse(ExpOfNegative(negative, integer_bits + 1));
  const int16_t size = Lift(Wrap(twice - (1 << 13)), 2);
  return x > 0 ? size : Wrap(-size);
}

void IntegerLstm(const IntegerLstmShape& shape, const IntegerLstmParameters& parameters, const int8_t* input,
                 const int8_t* input_weights, const int8_t* recurrent_weights, const int32_t* bias,
                 int8_t* hidden, int16_t* cell, int8_t* output) {
  const int64_t inputs = shape.inputs, units = shape.units;
  std::vector<int8_t> next(units);
  // Sums wrap around as int32 sums do in TFLite.
  const auto sum = [](const int8_t* values, int32_t zero_point, const int8_t* weights, int64_t count,
                      int32_t start) {
    uint32_t total = static_cast<uint32_t>(start);
    for (int64_t i = 0; i < count; ++i) total += static_cast<uint32_t>((values[i] - zero_point) * weights[i]);
    return static_cast<int32_t>(total);
  };
  for (int64_t b = 0; b < shape.batch; ++b) {
    int8_t* h = hidden + b * units;
    for (int64_t t = 0; t < shape.time; ++t) {
      const int8_t* x = input + (b * shape.time + t) * inputs;
      for (int64_t unit = 0; unit < units; ++unit) {
        int16_t gates[4];
        for (int64_t gate = 0; gate < 4; ++gate) {
          const int64_t row = gate * units + unit;
          const int32_t from_input =
              sum(x, parameters.input_zero_point, input_weights + row * inputs, inputs, bias[row]);
          const int32_t from_hidden =
              sum(h, parameters.hidden_zero_point, recurrent_weights + row * units, units, 0);
          const int16_t first =
              Saturate(MultiplyByQuantizedMultiplier(from_input, parameters.input_multipliers[gate]));
          gates[gate] = Saturate(
              first + MultiplyByQuantizedMultiplier(from_hidden, parameters.recurrent_multipliers[gate]));
        }
        const int16_t i = FixedPointLogistic(gates[0]), f = FixedPointLogistic(gates[1]);
        const int16_t g = FixedPointTanh(gates[2], 3), o = FixedPointLogistic(gates[3]);
        int16_t& c = cell[b * units + unit];
        const int16_t kept = Saturate(RoundingDivideByPowerOfTwo(f * c, 15));
        const int16_t added = Saturate(RoundingDivideByPowerOfTwo(i * g, 30 + parameters.cell_exponent));
        c = Saturate(kept + added);
        if (parameters.cell_clip > 0) {
          c = std::min(std::max<int16_t>(c, static_cast<int16_t>(-parameters.cell_clip)),
                       parameters.cell_clip);
        }
        const int32_t value = o * FixedPointTanh(c, 15 + parameters.cell_exponent);
        const int32_t scaled =
            MultiplyByQuantizedMultiplier(value, parameters.hidden_multiplier) + parameters.hidden_zero_point;
        next[unit] = static_cast<int8_t>(std::min(std::max(scaled, -128), 127));
      }
      std::copy_n(next.data(), units, h);
      std::copy_n(next.data(), units, output + (b * shape.time + t) * units);
    }
  }
}

}  // namespace dqat::core
