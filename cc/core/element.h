// The arithmetic of one element, in float32: the only place where it stands. rows.cc and the CUDA kernels
// compile it alike, without fused multiply-add, so that their results are the same bits.
//
// Everything is `static`, and only C headers are included: see rows.h.
#ifndef DQAT_CORE_ELEMENT_H_
#define DQAT_CORE_ELEMENT_H_

#include <math.h>

#include "core/host_device.h"

namespace dqat::core {

// With a scale of 0 (range (0, 0)) kDivide must be false: the inverse, 0 as well, gives TensorFlow's 0.
template <bool kDivide>
DQAT_HOST_DEVICE static inline float Quantize(float x, float lo, float hi, float scale, float inv_scale,
                                              float zero_level) {
  float clamped = x > hi ? hi : x;
  clamped = clamped < lo ? lo : clamped;  // a NaN stays a NaN
  const float steps = kDivide ? (clamped - lo) / scale : (clamped - lo) * inv_scale;
  return floorf(steps - zero_level + 0.5f) * scale;
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
