// Quantization parameters of a range: the only place in dqat where a scale, a zero point or a
// nudged range is computed. The CPU and CUDA kernels, the Python module and the export all call
// these functions.
//
// The arithmetic is that of TensorFlow's fake_quant_with_min_max_vars (Jacob et al., "Quantization
// and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", 2017, section
// 3): float32 throughout, so that results agree with TensorFlow to the bit. It must be compiled
// with -ffp-contract=off (nvcc: -fmad=false): a fused multiply-add would round once where TensorFlow rounds
// twice.
#ifndef DQAT_CORE_QUANTIZATION_H_
#define DQAT_CORE_QUANTIZATION_H_

#include <cmath>
#include <cstdint>
#include <limits>

#include "core/element.h"
#include "core/host_device.h"

namespace dqat::core {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kSmallestNormal = std::numeric_limits<float>::min();

// How a real interval is divided into levels.
struct QuantizerSpec {
  int num_bits = 8;           // 2 to 16
  bool narrow_range = false;  // levels 1 .. 2^num_bits - 1 instead of 0 .. 2^num_bits - 1
  bool symmetric = false;     // zero stands on the middle level
  bool power_of_two = false;  // symmetric, the scale a power of two (TFLite's int16 cell state)

  DQAT_HOST_DEVICE int quant_min() const { return narrow_range ? 1 : 0; }
  DQAT_HOST_DEVICE int quant_max() const { return (1 << num_bits) - 1; }
};

// An interval of float values. The empty range (+inf, -inf) is the identity of merging: it is what
// a quantizer holds before its first record, and what the record of an empty tensor is.
struct Range {
  float min = kInfinity;
  float max = -kInfinity;

  DQAT_HOST_DEVICE bool empty() const { return min == kInfinity && max == -kInfinity; }
};

// A range on its grid: the real values of the levels.
struct Grid {
  float nudged_min = 0.0f;  // value of the lowest level
  float nudged_max = 0.0f;  // value of the highest level
  float scale = 0.0f;       // distance of two levels
  float inv_scale = 0.0f;   // 1 / scale, rounded from the range itself, not from `scale`
  float zero_level = 0.0f;  // level of the value 0, less the lowest level
  float grad_min = 0.0f;    // the gradient to x passes inside [grad_min, grad_max]
  float grad_max = 0.0f;
  int32_t zero_point = 0;  // of the signed integer: the level of 0 less 2^(num_bits - 1)
  bool passthrough = false;
};

// True where `range` can be quantized with: finite with min < max, or both 0, or empty.
DQAT_HOST_DEVICE inline bool IsValid(const Range& range) {
  if (range.empty()) return true;
  if (!std::isfinite(range.min) || !std::isfinite(range.max)) return false;
  if (!std::isfinite(range.max - range.min)) return false;
  return range.min < range.max || (range.min == 0.0f && range.max == 0.0f);
}

// The grid of a valid range. Nudging moves the range so that 0 is exactly one of the levels. A range so small
// that its scale is no normal float32 (below about 3e-36 with 8 bits) is a range of 0 alone, like (0, 0): its
// inverse would be infinite and every value a NaN.
DQAT_HOST_DEVICE inline Grid MakeGrid(const Range& range, const QuantizerSpec& spec) {
  const GridNumbers numbers = NudgeRange(range.min, range.max, static_cast<float>(spec.quant_min()),
                                         static_cast<float>(spec.quant_max()));
  Grid grid;
  grid.nudged_min = numbers.nudged_min;
  grid.nudged_max = numbers.nudged_max;
  grid.scale = numbers.scale;
  grid.inv_scale = numbers.inv_scale;
  grid.zero_level = numbers.zero_level;
  grid.passthrough = range.empty();
  const bool has_scale = grid.scale > 0.0f;
  grid.grad_min = has_scale ? grid.nudged_min : -kInfinity;
  grid.grad_max = has_scale ? grid.nudged_max : kInfinity;
  if (has_scale) grid.zero_point = static_cast<int32_t>(numbers.level) - (1 << (spec.num_bits - 1));
  return grid;
}

// Bounds of the power-of-two ranges that TFLite's int16 tanh can read: 0 to 6 integer bits.
constexpr float kMinPowerOfTwoRange = 1.0f;
constexpr float kMaxPowerOfTwoRange = 64.0f;

// The range to quantize with, from what an observer has found: extended to contain 0, made
// symmetric or widened to a power of two where the quantizer asks for it. What is no record of values (empty,
// NaN, Inf, min above max) stays as it is, so that IsValid still tells. The result is not nudged: MakeGrid
// does that.
DQAT_HOST_DEVICE inline Range FitRange(Range range, const QuantizerSpec& spec) {
  if (!std::isfinite(range.min) || !std::isfinite(range.max) || range.min > range.max) return range;
  // Not fmin and fmax: the zero that they choose of -0 and +0 is the compiler's.
  range.min = range.min < 0.0f ? range.min : 0.0f;
  range.max = range.max > 0.0f ? range.max : 0.0f;
  if (!spec.symmetric && !spec.power_of_two) return range;
  float bound = -range.min > range.max ? -range.min : range.max;
  if (spec.power_of_two) {
    int exponent = 0;
    const float mantissa = std::frexp(bound, &exponent);  // bound = mantissa * 2^exponent
    if (mantissa == 0.5f) --exponent;                     // bound is a power of two itself
    bound = std::fmin(std::fmax(std::ldexp(1.0f, exponent), kMinPowerOfTwoRange), kMaxPowerOfTwoRange);
  }
  // With an even number of levels the negative side has one level more than the positive one.
  const float half_levels = static_cast<float>(1 << (spec.num_bits - 1));
  if (spec.narrow_range) return {-bound, bound};
  if (spec.power_of_two) return {-bound, bound - bound / half_levels};
  return {-bound * (half_levels / (half_levels - 1.0f)), bound};
}

}  // namespace dqat::core

#endif  // DQAT_CORE_QUANTIZATION_H_
