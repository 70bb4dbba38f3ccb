// Compiled once per instruction set, see rows.cc.
#include "core/code_tiles.h"

#include <math.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define DQAT_STRINGIFY_(x) #x
#define DQAT_STRINGIFY(x) DQAT_STRINGIFY_(x)

namespace dqat::core::DQAT_INSTRUCTION_SET {
namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kVectors = 4;  // 24 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kWidth = 8, kVectors = 2;  // 12 of 16
#else
constexpr int kWidth = 4, kVectors = 2;
#endif
constexpr int kColumns = kWidth * kVectors;

typedef int32_t Vector __attribute__((vector_size(kWidth * sizeof(int32_t)), may_alias));
typedef float Floats __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));

// As many pairs of 8-bit codes as a vector holds of 16-bit ones, widened.
static inline Vector LoadPairs(const int8_t* pairs) {
#if defined(__AVX512BW__)
  return (Vector)_mm512_cvtepi8_epi16(_mm256_load_si256((const __m256i*)pairs));
#elif defined(__AVX2__)
  return (Vector)_mm256_cvtepi8_epi16(_mm_load_si128((const __m128i*)pairs));
#else
  typedef int8_t Bytes __attribute__((vector_size(2 * kWidth), may_alias));
  typedef int16_t Halves __attribute__((vector_size(4 * kWidth)));
  return (Vector) __builtin_convertvector(*reinterpret_cast<const Bytes*>(pairs), Halves);
#endif
}

// To each sum the products of both halves of a pair.
static inline Vector AddProducts(Vector sum, Vector left, Vector right) {
#if defined(__AVX512VNNI__)
  return (Vector)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)left, (__m512i)right);
#elif defined(__AVX512BW__)
  return sum + (Vector)_mm512_madd_epi16((__m512i)left, (__m512i)right);
#elif defined(__AVX2__)
  return sum + (Vector)_mm256_madd_epi16((__m256i)left, (__m256i)right);
#elif defined(__SSE2__)
  return sum + (Vector)_mm_madd_epi16((__m128i)left, (__m128i)right);
#else
  const Vector odd = (left >> 16) * (right >> 16);
  // Shifts of unsigned values: a sign may be shifted out.
  typedef uint32_t Bits __attribute__((vector_size(sizeof(Vector))));
  return sum + odd + ((Vector)((Bits)left << 16) >> 16) * ((Vector)((Bits)right << 16) >> 16);
#endif
}

template <int kRows>
void Tile(int64_t pairs, const int16_t* left, int64_t left_stride, const int8_t* panel, const float* factors,
          float* results, int64_t stride) {
  Vector sums[kRows][kVectors] = {};
  const int16_t* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = left + r * left_stride;
  for (int64_t p = 0; p < pairs; ++p) {
    Vector right[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      right[v] = LoadPairs(panel + (p * kPanelColumns + v * kWidth) * 2);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      memcpy(&pair, row[r] + 2 * p, sizeof pair);
      const Vector all = pair - Vector{};
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = AddProducts(sums[r][v], all, right[v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      const Floats factor = *reinterpret_cast<const Floats*>(factors + v * kWidth);
      *reinterpret_cast<Floats*>(results + r * stride + v * kWidth) =
          __builtin_convertvector(sums[r][v], Floats) * factor;
    }
  }
}

void AnyTile(int64_t rows, int64_t pairs, const int16_t* left, int64_t left_stride, const int8_t* panel,
             const float* factors, float* results, int64_t stride) {
  static constexpr decltype(&Tile<1>) kTiles[kTileRows] = {Tile<1>, Tile<2>, Tile<3>,
                                                           Tile<4>, Tile<5>, Tile<6>};
  for (int column = 0; column < kPanelColumns; column += kColumns) {
    kTiles[rows - 1](pairs, left, left_stride, panel + column * 2, factors + column, results + column,
                     stride);
  }
}

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits

static inline int32_t Code(float steps) {
  const float shifted = steps + kRound;
  int32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  return bits - 0x4b400000;
}

bool Encode(int64_t count, const float* values, float steps, float most, int16_t* codes) {
  int32_t outside = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float value = values[i] * steps;
    outside |= fabsf(value) <= most ? 0 : 1;
    codes[i] = (int16_t)(uint32_t)Code(value);
  }
  return outside == 0;
}

// Whether a value is that of an 8-bit code; not for a NaN.
static inline int32_t FitsByte(float steps) { return (steps >= -128.5f) & (steps < 127.5f) ? 1 : 0; }

bool EncodePairs(const float* even, const float* odd, const float* steps, int8_t* pairs) {
  int32_t fit = 1;
  int16_t both[kPanelColumns];
  for (int j = 0; j < kPanelColumns; ++j) {
    const float first = even[j] * steps[j], second = odd[j] * steps[j];
    fit &= FitsByte(first) & FitsByte(second);
    both[j] = (int16_t)(((uint32_t)Code(first) & 0xffu) | ((uint32_t)Code(second) << 8));
  }
  memcpy(pairs, both, sizeof both);
  return fit != 0;
}

}  // namespace

const CodeKernels kCodeKernels = {DQAT_STRINGIFY(DQAT_INSTRUCTION_SET), Encode, EncodePairs, AnyTile};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
