#include "core/integer_lstm.h"

#include <algorithm>
#include <vector>

namespace dqat::core {
namespace {

int16_t Saturate(int32_t x) { return static_cast<int16_t>(SaturateToInt16(x)); }

}  // namespace

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
        int16_t& c = cell[b * units + unit];
        const auto seen = [&](int16_t gate, int peephole) {
          if (parameters.peepholes == nullptr) return gate;
          const int32_t product = parameters.peepholes[peephole * units + unit] * c;
          return Saturate(gate +
                          MultiplyByQuantizedMultiplier(product, parameters.peephole_multipliers[peephole]));
        };
        const int16_t i = FixedPointLogistic(seen(gates[0], 0)), f = FixedPointLogistic(seen(gates[1], 1));
        const int16_t g = FixedPointTanh(gates[2], 3);
        const int16_t kept = Saturate(RoundingDivideByPowerOfTwo(f * c, 15));
        const int16_t added = Saturate(RoundingDivideByPowerOfTwo(i * g, 30 + parameters.cell_exponent));
        c = Saturate(kept + added);
        if (parameters.cell_clip > 0) {
          c = std::min(std::max<int16_t>(c, static_cast<int16_t>(-parameters.cell_clip)),
                       parameters.cell_clip);
        }
        const int16_t o = FixedPointLogistic(seen(gates[3], 2));
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
