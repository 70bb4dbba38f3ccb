// The inner loops of code_products.h; compiled once per instruction set like rows.h, which says why nothing
// but C headers is included.
#ifndef DQAT_CORE_CODE_TILES_H_
#define DQAT_CORE_CODE_TILES_H_

#include <stdint.h>

#include "core/product_tiles.h"

namespace dqat::core {

struct CodeKernels {
  const char* name;

  // codes[i] = the integer nearest to values[i] * steps, halves to the even one. Returns false, with codes
  // that mean nothing, where one is more than `most` from 0, or no number.
  bool (*encode)(int64_t count, const float* values, float steps, float most, int16_t* codes);
  // Two neighbouring depths of 64 columns, encoded as pairs [64, 2], with steps for each column; false where
  // a code is not one of 8 bits.
  bool (*encode_pairs)(const float* even, const float* odd, const float* steps, int8_t* pairs);
  // results[r * stride + j] = factors[j] * the sum over p < pairs of left(r, 2 p) * panel(p, j, 0) +
  // left(r, 2 p + 1) * panel(p, j, 1), for r < rows <= kTileRows and j < 64, where left(r, k) is
  // left[r * left_stride + k]. The sum is exact; it must have a place in 32 bits. `panel` is aligned to 64
  // bytes.
  void (*tile)(int64_t rows, int64_t pairs, const int16_t* left, int64_t left_stride, const int8_t* panel,
               const float* factors, float* results, int64_t stride);
};

namespace baseline {
extern const CodeKernels kCodeKernels;
}
#ifdef DQAT_X86_INSTRUCTION_SETS
namespace avx2 {
extern const CodeKernels kCodeKernels;
}
namespace avx512 {
extern const CodeKernels kCodeKernels;
}
namespace avx512vnni {
extern const CodeKernels kCodeKernels;
}
#endif

}  // namespace dqat::core

#endif  // DQAT_CORE_CODE_TILES_H_
