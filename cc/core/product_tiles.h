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

struct ProductKernels {
  // results[r * stride + j] = sum over k < depth of left(r, k) * panel[k * 64 + j], for r < rows <= kTileRows
  // and j < 64; the chain of sums starts at `results` where `continues`, else at 0. `panel` is aligned to 64
  // bytes.
  void (*tile)(int64_t rows, int64_t depth, ProductOperand left, const float* panel, float* results,
               int64_t stride, bool continues);
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
