// Compiled once per instruction set, see rows.cc; but here the compiler may fuse multiply-adds. AVX2 and
// AVX-512 give the same bits, the baseline, which has no such instruction, others.
#include "core/product_tiles.h"

#include <math.h>
#include <string.h>

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

typedef float Vector __attribute__((vector_size(kWidth * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(kWidth * sizeof(float)), aligned(4), may_alias));
typedef uint32_t Pairs __attribute__((vector_size(kWidth * sizeof(uint32_t)), may_alias));

// No `auto` for this: it would forget that the address needn't be a multiple of the vector's size.
static inline Unaligned* At(float* results) { return reinterpret_cast<Unaligned*>(results); }

static inline void Load(const float* panel, Vector* right) {
  for (int v = 0; v < kVectors; ++v) right[v] = *reinterpret_cast<const Vector*>(panel + v * kWidth);
}

// A vector of pairs is two of floats: one instruction makes either.
static inline void Load(const UpperHalf* panel, Vector* right) {
  for (int v = 0; v < kVectors; v += 2) {
    const Pairs pairs = *reinterpret_cast<const Pairs*>(panel + v * kWidth);
    right[v] = (Vector)(pairs << 16);
    right[v + 1] = (Vector)(pairs & 0xffff0000u);
  }
}

template <int kRows, typename Element>
static inline void Add(int64_t depth, ProductOperand left, const Element* panel,
                       Vector (&sums)[kRows][kVectors]) {
  const float* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = left.data + r * left.row_stride;
  for (int64_t k = 0; k < depth; ++k) {
    Vector right[kVectors];
    Load(panel + k * kPanelColumns, right);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const float value = row[r][k * left.depth_stride];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] += value * right[v];
    }
  }
}

template <int kRows>
void Tile(int64_t depth, ProductOperand left, const float* panel, float* results, int64_t stride,
          bool continues) {
  Vector sums[kRows][kVectors] = {};
  if (continues) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] = *At(results + r * stride + v * kWidth);
    }
  }
  Add(depth, left, panel, sums);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) *At(results + r * stride + v * kWidth) = sums[r][v];
  }
}

template <int kRows>
void CodeTile(int64_t depth, ProductOperand left, const UpperHalf* panel, float factor, float* results,
              int64_t stride, bool continues) {
  Vector sums[kRows][kVectors] = {};
  Add(depth, left, panel, sums);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      Unaligned* result = At(results + r * stride + v * kWidth);
      *result = continues ? *result + factor * sums[r][v] : factor * sums[r][v];
    }
  }
}

void AnyTile(int64_t rows, int64_t depth, ProductOperand left, const float* panel, float* results,
             int64_t stride, bool continues) {
  static constexpr decltype(&Tile<1>) kTiles[kTileRows] = {Tile<1>, Tile<2>, Tile<3>,
                                                           Tile<4>, Tile<5>, Tile<6>};
  for (int column = 0; column < kPanelColumns; column += kColumns) {
    kTiles[rows - 1](depth, left, panel + column, results + column, stride, continues);
  }
}

void AnyCodeTile(int64_t rows, int64_t depth, ProductOperand left, const UpperHalf* panel, float factor,
                 float* results, int64_t stride, bool continues) {
  static constexpr decltype(&CodeTile<1>) kTiles[kTileRows] = {CodeTile<1>, CodeTile<2>, CodeTile<3>,
                                                               CodeTile<4>, CodeTile<5>, CodeTile<6>};
  for (int column = 0; column < kPanelColumns; column += kColumns) {
    kTiles[rows - 1](depth, left, panel + column, factor, results + column, stride, continues);
  }
}

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction

static inline uint32_t Bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

bool EncodeColumns(const float* columns, float steps, UpperHalf* panel) {
  int32_t fit = 1;
  for (int first = 0; first < kPanelColumns; first += 2 * kWidth) {
    uint32_t pairs[kWidth];
    for (int j = 0; j < kWidth; ++j) {
      const float lower = (columns[first + j] * steps + kRound) - kRound;
      const float upper = (columns[first + kWidth + j] * steps + kRound) - kRound;
      fit &= (fabsf(lower) <= kMostUpperHalf) & (fabsf(upper) <= kMostUpperHalf) ? 1 : 0;
      pairs[j] = Bits(lower) >> 16 | (Bits(upper) & 0xffff0000u);
    }
    memcpy(panel + first, pairs, sizeof pairs);
  }
  return fit != 0;
}

}  // namespace

const ProductKernels kProductKernels = {AnyTile, AnyCodeTile, EncodeColumns};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
