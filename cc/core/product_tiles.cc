// Compiled once per instruction set, see rows.cc; but here the compiler may fuse multiply-adds. AVX2 and
// AVX-512 give the same bits, the baseline, which has no such instruction, others.
#include "core/product_tiles.h"

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

template <int kRows>
void Tile(int64_t depth, ProductOperand left, const float* panel, float* results, int64_t stride,
          bool continues) {
  Vector sums[kRows][kVectors] = {};
  if (continues) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = *reinterpret_cast<const Unaligned*>(results + r * stride + v * kWidth);
      }
    }
  }
  const float* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = left.data + r * left.row_stride;
  for (int64_t k = 0; k < depth; ++k) {
    Vector right[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      right[v] = *reinterpret_cast<const Vector*>(panel + k * kPanelColumns + v * kWidth);
    }
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const float value = row[r][k * left.depth_stride];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] += value * right[v];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      *reinterpret_cast<Unaligned*>(results + r * stride + v * kWidth) = sums[r][v];
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

}  // namespace

const ProductKernels kProductKernels = {AnyTile};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
