// One unit of the LSTM in one timestep, forwards and backwards: the only place where this arithmetic stands.
// Compiled without fused multiply-add, so that all instruction sets and CUDA give the same bits.
//
// It is float32, or, once all ranges are known, what TFLite's integer kernel makes of the same numbers: sums
// rounded to 16 bits as it rounds them, its fixed-point logistic and tanh, a cell state of rounded products.
// What is left of the difference are exact sums whose multiple in float32 lies on the edge of a rounding.
//
// Everything is `static`, and only C headers are included: see rows.h.
#ifndef DQAT_CORE_LSTM_ELEMENT_H_
#define DQAT_CORE_LSTM_ELEMENT_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/fixed_point.h"
#include "core/host_device.h"

namespace dqat::core {

// Gate pre-activations are TFLite's Q3.12: 16 bits with 12 of fraction, saturating.
constexpr float kGateMin = -8.0f, kGateMax = 8.0f - 1.0f / 4096.0f;
// The fused op that the converter makes of a Keras LSTM carries this clip.
constexpr float kCellClip = 10.0f;

// e^x for |x| <= 60, within 1 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, and a polynomial in r fitted to a
// relative error of 3e-9. A NaN stays a NaN.
DQAT_HOST_DEVICE static inline float Exp(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts, the first of few bits
  float q = 0.0013813147f;
  q = q * r + 0.008369419f;
  q = q * r + 0.041668456f;
  q = q * r + 0.16666515f;
  q = q * r + 0.49999994f;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (int32_t)(((uint32_t)bits << 23) + 0x3f800000u);
  float power;
  memcpy(&power, &bits, sizeof power);
  return (1.0f + (r + r * r * q)) * power;
}

// For |x| <= 60, within 3 ulp.
DQAT_HOST_DEVICE static inline float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

// For |x| <= 30, within 3 ulp. Near 0 an odd polynomial with a relative error of 5e-9.
DQAT_HOST_DEVICE static inline float Tanh(float x) {
  const float size = fabsf(x), square = x * x;
  const float far = 1.0f - 2.0f / (Exp(size + size) + 1.0f);
  float q = -0.005704987f;
  q = q * square + 0.020639086f;
  q = q * square + -0.053739715f;
  q = q * square + 0.13331442f;
  q = q * square + -0.3333328f;
  const float near = x + x * square * q;
  return size < 0.625f ? near : copysignf(far, x);
}

DQAT_HOST_DEVICE static inline float Clip(float x, float lo, float hi) {
  const float low = x < lo ? lo : x;
  return low > hi ? hi : low;  // a NaN stays a NaN
}

// A state's grid. Without a range values pass through, and the gradient's bounds are infinite.
struct StateGrid {
  float nudged_min, nudged_max, scale, divisor, zero_level, grad_min, grad_max;
  float passthrough;  // 1 or 0: a bool would keep the compiler from vectorising
};

// The bits of Quantize<true> in element.h, but for a range of 0 alone, where the divisor is 1.
DQAT_HOST_DEVICE static inline float QuantizeState(float x, const StateGrid& grid) {
  const float steps = (Clip(x, grid.nudged_min, grid.nudged_max) - grid.nudged_min) / grid.divisor;
  const float level = floorf(steps - grid.zero_level + 0.5f) * grid.scale;
  return grid.passthrough != 0.0f ? x : level;
}

// What the backward pass needs of a unit: the gates after their activations. Where a pre-activation was
// clipped, i, f and o, which are positive, have their sign turned, and g is past ±2.
struct LstmGates {
  float i, f, g, o;
};

DQAT_HOST_DEVICE static inline float ClippedGate(float gate, bool clipped) { return clipped ? -gate : gate; }

DQAT_HOST_DEVICE static inline bool IsClipped(float sum) { return (sum < kGateMin) | (sum > kGateMax); }

DQAT_HOST_DEVICE static inline LstmGates KeptGates(const LstmGates& gates, const LstmGates& sums) {
  return {ClippedGate(gates.i, IsClipped(sums.i)), ClippedGate(gates.f, IsClipped(sums.f)),
          IsClipped(sums.g) ? gates.g * 4.0f : gates.g,  // |g| is nearly 1 there: no bit is lost
          ClippedGate(gates.o, IsClipped(sums.o))};
}

DQAT_HOST_DEVICE static inline LstmGates GatesOf(const LstmGates& kept) {
  return {fabsf(kept.i), fabsf(kept.f), fabsf(kept.g) > 2.0f ? kept.g * 0.25f : kept.g, fabsf(kept.o)};
}

struct LstmOutcome {
  LstmGates gates;
  float cell_value;    // before quantization: what is recorded
  float hidden_value;  // as well
  float cell;
  float hidden;
};

// The cell state before its clip.
DQAT_HOST_DEVICE static inline float CellSum(const LstmGates& gates, float cell) {
  return gates.f * cell + gates.i * gates.g;
}

DQAT_HOST_DEVICE static inline LstmOutcome LstmForward(const LstmGates& sums, float cell,
                                                       const StateGrid& cell_grid,
                                                       const StateGrid& hidden_grid) {
  const LstmGates gates = {Sigmoid(Clip(sums.i, kGateMin, kGateMax)),
                           Sigmoid(Clip(sums.f, kGateMin, kGateMax)), Tanh(Clip(sums.g, kGateMin, kGateMax)),
                           Sigmoid(Clip(sums.o, kGateMin, kGateMax))};
  LstmOutcome result;
  result.gates = KeptGates(gates, sums);
  result.cell_value = Clip(CellSum(gates, cell), -kCellClip, kCellClip);
  result.cell = QuantizeState(result.cell_value, cell_grid);
  result.hidden_value = gates.o * Tanh(result.cell);
  result.hidden = QuantizeState(result.hidden_value, hidden_grid);
  return result;
}

// How the integer kernel rounds. A product's sum goes to units of 2^-12 by a multiplication that keeps
// `shift` more bits at first; they are rounded away in a second step.
struct LstmRounding {
  int32_t input_shift[4], hidden_shift[4];    // by gate
  float input_steps[4], hidden_steps[4];      // 2^(12 + shift)
  float input_factors[4], hidden_factors[4];  // the scales of the products
  float x_codes, hidden_codes;                // codes in a unit: the inverse of an operand's scale
  float kernel_codes[4], recurrent_codes[4];
  int32_t cell_exponent;         // the cell state's scale is 2^cell_exponent
  float cell_scale, cell_steps;  // that, and its inverse
  bool is_integer;               // false where ranges or scales are not known, or not TFLite's
};

// More bits than these are not in a float32.
constexpr int kMostShift = 9;

// `scales` [3, 4]: for each gate those of the input, of its kernel and of the recurrent kernel; null where
// they are not known.
DQAT_HOST_DEVICE static inline LstmRounding MakeLstmRounding(const float* scales,
                                                             const StateGrid& hidden_grid,
                                                             const StateGrid& cell_grid) {
  LstmRounding rounding = {};
  if (scales == nullptr || hidden_grid.passthrough != 0.0f || cell_grid.passthrough != 0.0f) return rounding;
  int exponent = 0;
  if (!(cell_grid.scale > 0.0f) || frexpf(cell_grid.scale, &exponent) != 0.5f) return rounding;
  rounding.cell_exponent = exponent - 1;
  if (rounding.cell_exponent < -15 || rounding.cell_exponent > -9) return rounding;
  rounding.cell_scale = cell_grid.scale;
  rounding.cell_steps = ldexpf(1.0f, -rounding.cell_exponent);
  const float lowest = cell_grid.nudged_min * rounding.cell_steps;
  if (lowest < -32768.0f || cell_grid.nudged_max * rounding.cell_steps > 32767.0f) return rounding;
  rounding.x_codes = 1.0f / scales[0];
  rounding.hidden_codes = 1.0f / hidden_grid.scale;
  for (int gate = 0; gate < 8; ++gate) {
    const bool is_input = gate < 4;
    const int g = gate % 4;
    const float left = is_input ? scales[0] : hidden_grid.scale;
    const float right = scales[4 + gate];
    const float factor = left * right * 4096.0f;
    if (!(left > 0.0f) || !(factor > 0.0f) || factor - factor != 0.0f) return rounding;
    frexpf(factor, &exponent);
    const int shift = exponent > 0 ? 0 : -exponent > kMostShift ? kMostShift : -exponent;
    (is_input ? rounding.input_shift : rounding.hidden_shift)[g] = shift;
    (is_input ? rounding.input_steps : rounding.hidden_steps)[g] = ldexpf(4096.0f, shift);
    (is_input ? rounding.input_factors : rounding.hidden_factors)[g] = left * right;
    (is_input ? rounding.kernel_codes : rounding.recurrent_codes)[g] = 1.0f / right;
  }
  rounding.is_integer = true;
  return rounding;
}

// x within bounds, the lower one for a NaN: two instructions where a bound comes before a conversion.
DQAT_HOST_DEVICE static inline float Within(float x, float lo, float hi) {
  const float low = x > lo ? x : lo;
  return low < hi ? low : hi;
}

// The nearest integer, halves upwards, as far as ±2^27; the least for a NaN.
DQAT_HOST_DEVICE static inline int32_t NearestInteger(float x) {
  constexpr float kMost = 134217728.0f;
  return (int32_t)floorf(Within(x, -kMost, kMost) + 0.5f);
}

// RoundingDivideByPowerOfTwo, for vectors: the sign's bits add -1 to what half a step adds, unless shift is
// 0.
DQAT_HOST_DEVICE static inline int32_t DivideByPowerOfTwo(int32_t x, int32_t shift) {
  const int32_t half = (1 << shift) >> 1, sign = shift > 0 ? -1 : 0;
  return (x + half + ((x >> 31) & sign)) >> shift;
}

// The 16 bits that go into a gate's activation, in units of 2^-12.
DQAT_HOST_DEVICE static inline int32_t GateCode(float from_input, float from_hidden,
                                                const LstmRounding& rounding, int gate) {
  const int32_t first =
      DivideByPowerOfTwo(NearestInteger(from_input * rounding.input_steps[gate]), rounding.input_shift[gate]);
  const int32_t second = DivideByPowerOfTwo(NearestInteger(from_hidden * rounding.hidden_steps[gate]),
                                            rounding.hidden_shift[gate]);
  return SaturateToInt16(SaturateToInt16(first) + second);
}

constexpr float kQ15 = 1.0f / 32768.0f;

DQAT_HOST_DEVICE static inline int32_t CellCode(float cell, const LstmRounding& rounding) {
  return (int32_t)floorf(Within(cell * rounding.cell_steps, -32768.0f, 32767.0f) + 0.5f);
}

// CellSum as the integer kernel rounds it, from gates in Q0.15.
DQAT_HOST_DEVICE static inline float RoundedCellSum(const LstmGates& gates, float cell,
                                                    const LstmRounding& rounding) {
  const int32_t i = (int32_t)(gates.i * 32768.0f), f = (int32_t)(gates.f * 32768.0f);
  const int32_t g = (int32_t)(gates.g * 32768.0f);
  const int32_t kept = DivideByPowerOfTwo(f * CellCode(cell, rounding), 15);
  const int32_t added = DivideByPowerOfTwo(i * g, 30 + rounding.cell_exponent);
  return (float)(kept + added) * rounding.cell_scale;
}

// The new cell state, from gates in Q0.15; NaN where one of their sums is no number.
DQAT_HOST_DEVICE static inline void UpdateCell(const LstmGates& gates, const LstmGates& sums, float cell,
                                               const StateGrid& cell_grid, const LstmRounding& rounding,
                                               LstmOutcome* result) {
  const float nothing = ((sums.i + sums.f) + (sums.g + sums.o)) * 0.0f;
  result->gates = KeptGates(gates, sums);
  result->cell_value = Clip(RoundedCellSum(gates, cell, rounding), -kCellClip, kCellClip) + nothing;
  // QuantizeState of a value that is on the grid already; -0 becomes +0 there.
  result->cell = Clip(result->cell_value, cell_grid.nudged_min, cell_grid.nudged_max) + 0.0f;
}

DQAT_HOST_DEVICE static inline void UpdateHidden(float o, float tanh_cell, const StateGrid& hidden_grid,
                                                 LstmOutcome* result) {
  result->hidden_value = o * tanh_cell;
  result->hidden = QuantizeState(result->hidden_value, hidden_grid);
}

// The tanh of a cell state, from its value in Q0.15; NaN where the state is.
DQAT_HOST_DEVICE static inline float TanhOf(float tanh, float cell) { return tanh + cell * 0.0f; }

// All of it, without tables.
DQAT_HOST_DEVICE static inline LstmOutcome IntegerLstmForward(const LstmGates& from_input,
                                                              const LstmGates& from_hidden, float cell,
                                                              const StateGrid& cell_grid,
                                                              const StateGrid& hidden_grid,
                                                              const LstmRounding& rounding) {
  const LstmGates sums = {from_input.i + from_hidden.i, from_input.f + from_hidden.f,
                          from_input.g + from_hidden.g, from_input.o + from_hidden.o};
  const LstmGates gates = {
      FixedPointLogistic((int16_t)GateCode(from_input.i, from_hidden.i, rounding, 0)) * kQ15,
      FixedPointLogistic((int16_t)GateCode(from_input.f, from_hidden.f, rounding, 1)) * kQ15,
      FixedPointTanh((int16_t)GateCode(from_input.g, from_hidden.g, rounding, 2), 3) * kQ15,
      FixedPointLogistic((int16_t)GateCode(from_input.o, from_hidden.o, rounding, 3)) * kQ15};
  LstmOutcome result;
  UpdateCell(gates, sums, cell, cell_grid, rounding, &result);
  const int16_t code = (int16_t)CellCode(result.cell, rounding);
  const float tanh = FixedPointTanh(code, 15 + rounding.cell_exponent) * kQ15;
  UpdateHidden(gates.o, TanhOf(tanh, result.cell), hidden_grid, &result);
  return result;
}

DQAT_HOST_DEVICE static inline float Passes(float value, float lo, float hi) {
  return (value >= lo) & (value <= hi) ? 1.0f : 0.0f;
}

struct LstmSlopes {
  LstmGates sums;  // to the pre-activations
  float cell;      // to the cell state before the timestep
};

// `tanh_cell` and `cell_sum` are those of the forward pass, `cell_before` the state before the timestep;
// `cell_slope` and `hidden_slope` are what arrives at both states after the timestep.
DQAT_HOST_DEVICE static inline LstmSlopes LstmBackward(const LstmGates& kept, float cell_before,
                                                       float tanh_cell, float cell_sum, float cell_slope,
                                                       float hidden_slope, const StateGrid& cell_grid,
                                                       const StateGrid& hidden_grid) {
  const LstmGates gates = GatesOf(kept);
  const float i = gates.i, f = gates.f, g = gates.g, o = gates.o;
  const float hidden = hidden_slope * Passes(o * tanh_cell, hidden_grid.grad_min, hidden_grid.grad_max);
  const float value = Clip(cell_sum, -kCellClip, kCellClip);
  const float inside =
      Passes(value, cell_grid.grad_min, cell_grid.grad_max) * Passes(cell_sum, -kCellClip, kCellClip);
  const float to_cell = (cell_slope + hidden * o * (1.0f - tanh_cell * tanh_cell)) * inside;
  LstmSlopes slopes;
  slopes.sums.i = to_cell * g * (i * (1.0f - i)) * (kept.i > 0.0f ? 1.0f : 0.0f);
  slopes.sums.f = to_cell * cell_before * (f * (1.0f - f)) * (kept.f > 0.0f ? 1.0f : 0.0f);
  slopes.sums.g = to_cell * i * (1.0f - g * g) * (fabsf(kept.g) > 2.0f ? 0.0f : 1.0f);
  slopes.sums.o = hidden * tanh_cell * (o * (1.0f - o)) * (kept.o > 0.0f ? 1.0f : 0.0f);
  slopes.cell = to_cell * f;
  return slopes;
}

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_ELEMENT_H_
