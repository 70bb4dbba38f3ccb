// One unit of the LSTM in one timestep, forwards and backwards, in float32: the only place where this
// arithmetic stands. Compiled without fused multiply-add, so that all instruction sets and CUDA give the same
// bits.
//
// Everything is `static`, and only C headers are included: see rows.h.
#ifndef DQAT_CORE_LSTM_ELEMENT_H_
#define DQAT_CORE_LSTM_ELEMENT_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

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

struct LstmOutcome {
  LstmGates gates;
  float cell_value;    // before quantization: what is recorded
  float hidden_value;  // as well
  float cell;
  float hidden;
};

// The cell state before its clip.
DQAT_HOST_DEVICE static inline float CellSum(float i, float f, float g, float cell) {
  return f * cell + i * g;
}

DQAT_HOST_DEVICE static inline LstmOutcome LstmForward(LstmGates sums, float cell, const StateGrid& cell_grid,
                                                       const StateGrid& hidden_grid) {
  const float i = Sigmoid(Clip(sums.i, kGateMin, kGateMax)), f = Sigmoid(Clip(sums.f, kGateMin, kGateMax));
  const float g = Tanh(Clip(sums.g, kGateMin, kGateMax)), o = Sigmoid(Clip(sums.o, kGateMin, kGateMax));
  LstmOutcome result;
  result.gates.i = ClippedGate(i, IsClipped(sums.i));
  result.gates.f = ClippedGate(f, IsClipped(sums.f));
  result.gates.g = IsClipped(sums.g) ? g * 4.0f : g;  // |g| is nearly 1 there: no bit is lost
  result.gates.o = ClippedGate(o, IsClipped(sums.o));
  result.cell_value = Clip(CellSum(i, f, g, cell), -kCellClip, kCellClip);
  result.cell = QuantizeState(result.cell_value, cell_grid);
  result.hidden_value = o * Tanh(result.cell);
  result.hidden = QuantizeState(result.hidden_value, hidden_grid);
  return result;
}

DQAT_HOST_DEVICE static inline float Passes(float value, float lo, float hi) {
  return (value >= lo) & (value <= hi) ? 1.0f : 0.0f;
}

struct LstmSlopes {
  LstmGates sums;  // to the pre-activations
  float cell;      // to the cell state before the timestep
};

// `cell` is the state after the timestep, `cell_before` the one before; `cell_slope` and `hidden_slope` are
// what arrives at both states after the timestep.
DQAT_HOST_DEVICE static inline LstmSlopes LstmBackward(LstmGates kept, float cell_before, float cell,
                                                       float cell_slope, float hidden_slope,
                                                       const StateGrid& cell_grid,
                                                       const StateGrid& hidden_grid) {
  const float i = fabsf(kept.i), f = fabsf(kept.f), o = fabsf(kept.o);
  const bool g_clipped = fabsf(kept.g) > 2.0f;
  const float g = g_clipped ? kept.g * 0.25f : kept.g;
  const float tanh_cell = Tanh(cell);
  const float hidden = hidden_slope * Passes(o * tanh_cell, hidden_grid.grad_min, hidden_grid.grad_max);
  const float cell_sum = CellSum(i, f, g, cell_before);
  const float value = Clip(cell_sum, -kCellClip, kCellClip);
  const float inside =
      Passes(value, cell_grid.grad_min, cell_grid.grad_max) * Passes(cell_sum, -kCellClip, kCellClip);
  const float to_cell = (cell_slope + hidden * o * (1.0f - tanh_cell * tanh_cell)) * inside;
  LstmSlopes slopes;
  slopes.sums.i = to_cell * g * (i * (1.0f - i)) * (kept.i > 0.0f ? 1.0f : 0.0f);
  slopes.sums.f = to_cell * cell_before * (f * (1.0f - f)) * (kept.f > 0.0f ? 1.0f : 0.0f);
  slopes.sums.g = to_cell * i * (1.0f - g * g) * (g_clipped ? 0.0f : 1.0f);
  slopes.sums.o = hidden * tanh_cell * (o * (1.0f - o)) * (kept.o > 0.0f ? 1.0f : 0.0f);
  slopes.cell = to_cell * f;
  return slopes;
}

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_ELEMENT_H_
