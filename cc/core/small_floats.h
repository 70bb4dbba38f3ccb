// 16-bit floating-point numbers as storage: their bits, converted to and from float32 for arithmetic.
//
// Conversion to float is exact. From float it rounds to nearest, ties to even, as IEEE 754 and TensorFlow
// do; what is too large becomes infinite, and a NaN stays a (quiet) NaN.
#ifndef DQAT_CORE_SMALL_FLOATS_H_
#define DQAT_CORE_SMALL_FLOATS_H_

// C headers only: rows.cc includes this file (see rows.h).
#include <stdint.h>
#include <string.h>

namespace dqat::core {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

namespace {  // each instruction set compiles its own copy

inline float FloatOfBits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t BitsOfFloat(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float ToFloat(float value) { return value; }

inline float ToFloat(BFloat16 value) { return FloatOfBits(static_cast<uint32_t>(value.bits) << 16); }

inline float ToFloat(Half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // The fraction and the exponent move into place, the exponent grows by the difference of the biases.
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t special = normal + 0x38000000u;  // Inf and NaN: an exponent of all ones
  // A denormal is a multiple of 2^-24. Computed from the integer: TensorFlow's threads treat float32
  // denormals, which the bits would be on the way, as zero.
  const uint32_t denormal =
      BitsOfFloat(static_cast<float>(static_cast<int32_t>(magnitude)) * 5.9604644775390625e-8f);
  uint32_t bits = magnitude < 0x400u ? denormal : normal;
  bits = magnitude >= 0x7c00u ? special : bits;
  return FloatOfBits(bits | sign);
}

template <typename T>
T FromFloat(float value);

template <>
inline float FromFloat<float>(float value) {
  return value;
}

template <>
inline BFloat16 FromFloat<BFloat16>(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded)};
}

template <>
inline Half FromFloat<Half>(float value) {
  const uint32_t bits = BitsOfFloat(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal numbers: rounds the 13 lower bits of the fraction away and corrects the exponent by 112.
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14: adding 1/2 makes the adder itself round to multiples of 2^-24.
  const uint32_t denormal = BitsOfFloat(FloatOfBits(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? denormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and more round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
  return {static_cast<uint16_t>(half | sign)};
}

}  // namespace
}  // namespace dqat::core

#endif  // DQAT_CORE_SMALL_FLOATS_H_
