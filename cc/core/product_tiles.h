// The inner tile of products.h; compiled once per instruction set like rows.h, which says why nothing but C
// headers is included.
#ifndef DQAT_CORE_PRODUCT_TILES_H_
#define DQAT_CORE_PRODUCT_TILES_H_

#include <stdint.h>

namespace dqat::core {

constexpr int kPanelColumns = 64;
constexpr int kTileRows = 6;

// The element of row r and depth k is data[r * row_stride + k * depth_stride].
struct ProductOperand {
  const float* data;
  int64_t row_stride;
  int64_t depth_stride;
};

// The upper half of a float32, bfloat16. It has all whole numbers as far as this one.
typedef uint16_t UpperHalf;
constexpr float kMostUpperHalf = 256.0f;

struct ProductKernels {
  // results[r * stride + j] = sum over k < depth of left(r, k) * panel[k * 64 + j], for r < rows <= kTileRows
  // and j < 64; the chain of sums starts at `results` where `continues`, else at 0. `panel` is aligned to 64
  // bytes.
  void (*tile)(int64_t rows, int64_t depth, ProductOperand left, const float* panel, float* results,
               int64_t stride, bool continues);
  // The same with a panel of codes, in half the memory, and a factor: `factor` times a chain that starts at
  // 0, added to `results` where `continues`.
  void (*code_tile)(int64_t rows, int64_t depth, ProductOperand left, const UpperHalf* panel, float factor,
                    float* results, int64_t stride, bool continues);
  // One depth of such a panel, in the order in which code_tile reads its columns: the integers nearest to
  // columns[j] * steps, for j < 64. Returns false, with codes that mean nothing, where one is more than
  // kMostUpperHalf from 0, or no number.
  bool (*encode_columns)(const float* columns, float steps, UpperHalf* panel);
};

namespace baseline {
extern const ProductKernels kProductKernels;
}
#ifdef DQAT_X86_INSTRUCTION_SETS
namespace avx2 {
extern const ProductKernels kProductKernels;
}
namespace avx512 {
extern const ProductKernels kProductKernels;
}
#endif

}  // namespace dqat::core

#endif  // DQAT_CORE_PRODUCT_TILES_H_
