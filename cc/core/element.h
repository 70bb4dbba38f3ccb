// The arithmetic of one element, in float32: the only place where it stands. rows.cc and the CUDA kernels
// compile it alike, without fused multiply-add, so that their results are the same bits.
//
// Everything is `static`, and only C headers are included: see rows.h.
#ifndef DQAT_CORE_ELEMENT_H_
#define DQAT_CORE_ELEMENT_H_

#include <math.h>
#include <stdint.h>

#include "core/host_device.h"

namespace dqat::core {

// A range on its grid; what Grid in quantization.h says of each. All 0 where the scale is no normal number,
// as for the empty range.
struct GridNumbers {
  float nudged_min, nudged_max, scale, inv_scale, zero_level;
  float level;  // of the value 0
};

DQAT_HOST_DEVICE static inline GridNumbers NudgeRange(float min, float max, float quant_min,
                                                      float quant_max) {
  const float scale = (max - min) / (quant_max - quant_min);
  const float inv_scale = (quant_max - quant_min) / (max - min);
  const float from_min = quant_min - min / scale;
  // To the nearest, halves up: from_min is not negative where it counts.
  const float whole = floorf(from_min);
  float level = from_min - whole >= 0.5f ? whole + 1.0f : whole;
  level = from_min < quant_min ? quant_min : level;
  level = from_min > quant_max ? quant_max : level;
  const float nudged_min = (quant_min - level) * scale, nudged_max = (quant_max - level) * scale;
  const float zero_level = floorf(-nudged_min * inv_scale + 0.5f);
  const bool has_scale = scale >= __FLT_MIN__;
  return {has_scale ? nudged_min : 0.0f, has_scale ? nudged_max : 0.0f, has_scale ? scale : 0.0f,
          has_scale ? inv_scale : 0.0f,  has_scale ? zero_level : 0.0f, has_scale ? level : 0.0f};
}

// What a layer computes last, before its result is quantized.
enum class Activation { kLinear, kRelu, kRelu6 };

// A NaN stays a NaN.
DQAT_HOST_DEVICE static inline float Activate(float x, Activation activation) {
  const float positive = x < 0.0f ? 0.0f : x;
  if (activation == Activation::kRelu) return positive;
  if (activation == Activation::kRelu6) return positive > 6.0f ? 6.0f : positive;
  return x;
}

// For an input that is quantized after an activation, in a nudged range: where its slope reaches min, max and
// itself (SlopeReach).
struct SlopeBounds {
  float below, above, lowest, highest;
  bool positive;  // `lowest` is 0, and itself left out
};
DQAT_HOST_DEVICE static inline SlopeBounds BoundSlopes(float grad_min, float grad_max,
                                                       Activation activation) {
  if (activation == Activation::kLinear) return {grad_min, grad_max, grad_min, grad_max, false};
  // A nudged range contains 0: what ReLU gives never lies below it.
  if (activation == Activation::kRelu) return {-__builtin_inff(), grad_max, 0.0f, grad_max, true};
  constexpr float kBelow6 = 5.9999995f;  // the last number before
  if (grad_max < 6.0f) return {-__builtin_inff(), grad_max, 0.0f, grad_max, true};
  return {-__builtin_inff(), __builtin_inff(), 0.0f, kBelow6, true};
}

// With a scale of 0 (range (0, 0)) kDivide must be false: the inverse, 0 as well, gives TensorFlow's 0.
template <bool kDivide>
DQAT_HOST_DEVICE static inline float QuantizeClamped(float clamped, float lo, float scale, float inv_scale,
                                                     float zero_level) {
  const float steps = kDivide ? (clamped - lo) / scale : (clamped - lo) * inv_scale;
  return floorf(steps - zero_level + 0.5f) * scale;
}

// A NaN stays a NaN.
DQAT_HOST_DEVICE static inline float Clamp(float x, float lo, float hi) {
  const float clamped = x > hi ? hi : x;
  return clamped < lo ? lo : clamped;
}

template <bool kDivide>
DQAT_HOST_DEVICE static inline float Quantize(float x, float lo, float hi, float scale, float inv_scale,
                                              float zero_level) {
  return QuantizeClamped<kDivide>(Clamp(x, lo, hi), lo, scale, inv_scale, zero_level);
}

// A NaN or an Inf becomes the record (-inf, +inf).
DQAT_HOST_DEVICE static inline float RecordMin(float x) { return x - x == 0.0f ? x : -__builtin_inff(); }
DQAT_HOST_DEVICE static inline float RecordMax(float x) { return x - x == 0.0f ? x : __builtin_inff(); }

// The slope that reaches x, min and max. TensorFlow multiplies with 0 or 1; so a blocked negative slope gives
// -0.
DQAT_HOST_DEVICE static inline float SlopeToX(float x, float slope, float lo, float hi) {
  return slope * ((x >= lo) & (x <= hi) ? 1.0f : 0.0f);
}
DQAT_HOST_DEVICE static inline float SlopeToMin(float x, float slope, float lo) {
  return x < lo ? slope : 0.0f;
}
DQAT_HOST_DEVICE static inline float SlopeToMax(float x, float slope, float hi) {
  return x > hi ? slope : 0.0f;
}

// What the slopes of kReachValues values in a row reach, as one word: two bits a value, which is all that the
// gradient needs of it. Bit i of the lower half, with that of the upper half before it: 00 nothing, 01 the
// value, 10 min, 11 max.
constexpr int kReachValues = 32;

DQAT_HOST_DEVICE static inline int64_t ReachWords(int64_t values) {
  return (values + kReachValues - 1) / kReachValues;
}

template <bool kAboveLo>
DQAT_HOST_DEVICE static inline uint64_t SlopeReach(float x, const SlopeBounds& bounds, int i) {
  const bool inside = (kAboveLo ? x > bounds.lowest : x >= bounds.lowest) & (x <= bounds.highest);
  const bool below = x<bounds.below, above = x> bounds.above;
  return static_cast<uint64_t>(inside | above) << i | static_cast<uint64_t>(below | above)
                                                          << (i + kReachValues);
}

struct ReachBits {
  uint32_t to_x, to_min, to_max;
};
DQAT_HOST_DEVICE static inline ReachBits ReadReach(uint64_t word) {
  const uint32_t lower = static_cast<uint32_t>(word), upper = static_cast<uint32_t>(word >> kReachValues);
  return {lower & ~upper, upper & ~lower, lower & upper};
}

// A learned step (learned_step.h), whose levels run from -zero_level to levels - zero_level. d y / d step is
// the level less the value in steps inside the range, the outermost level outside. A NaN is neither and has
// no share. With a scale of 0 (no step yet) nothing has one, and the whole slope reaches x.
template <bool kDivide>
DQAT_HOST_DEVICE static inline float StepSlope(float x, float lo, float hi, float scale, float inv_scale,
                                               float zero_level, float levels) {
  const float steps = kDivide ? (x - lo) / scale : (x - lo) * inv_scale;
  const float inside = floorf(steps - zero_level + 0.5f) - x / scale;
  float slope = x > lo ? inside : 0.0f;
  slope = x <= lo ? -zero_level : slope;
  slope = x >= hi ? levels - zero_level : slope;
  return scale > 0.0f ? slope : 0.0f;
}
DQAT_HOST_DEVICE static inline float StepSlopeToX(float x, float slope, float lo, float hi, float scale) {
  return slope * (((x > lo) & (x < hi)) | !(scale > 0.0f) ? 1.0f : 0.0f);
}

}  // namespace dqat::core

#endif  // DQAT_CORE_ELEMENT_H_
