// TFLite's integer arithmetic, as plain reference loops: what an exported model computes, to the bit.
//
// Fixed-point numbers and rounding are those of gemmlowp (fixedpoint/fixedpoint.h) as TFLite uses them in
// lite/kernels/internal/common.h, with double rounding, which is how the released kernels are built.
#ifndef DQAT_CORE_INTEGER_KERNELS_H_
#define DQAT_CORE_INTEGER_KERNELS_H_

#include <cstdint>

namespace dqat::core {

// A positive real factor as value * 2^(shift - 31), value in [2^30, 2^31) or 0.
struct QuantizedMultiplier {
  int32_t value = 0;
  int shift = 0;
};

QuantizedMultiplier QuantizeMultiplier(double factor);

// x times the factor, rounded twice: after the high half of the product, and after the right shift.
int32_t MultiplyByQuantizedMultiplier(int32_t x, QuantizedMultiplier multiplier, bool ties_upwards = false);

struct FullyConnectedShape {
  int64_t batch = 0;
  int64_t inputs = 0;
  int64_t outputs = 0;
};

struct FullyConnectedParameters {
  int32_t input_zero_point = 0;
  int32_t output_zero_point = 0;
  int32_t lowest = -128;  // of the output, after a fused activation
  int32_t highest = 127;
  // How the shift after the product breaks ties: TFLite's reference kernel away from zero, its optimized one
  // (ruy, on every CPU) upwards.
  bool ties_upwards = false;
};

// int8 FULLY_CONNECTED: output[b, o] = clamp(z_out + M_o * (bias[o] + sum_i (input[b, i] - z_in) * weight[o,
// i])). Weights are symmetric, [outputs, inputs]; `multipliers` is [outputs]; `bias` may be null. Sums wrap
// around as int32 sums do in TFLite.
void FullyConnected(const FullyConnectedShape& shape, const FullyConnectedParameters& parameters,
                    const QuantizedMultiplier* multipliers, const int8_t* input, const int8_t* weight,
                    const int32_t* bias, int8_t* output);

}  // namespace dqat::core

#endif  // DQAT_CORE_INTEGER_KERNELS_H_
