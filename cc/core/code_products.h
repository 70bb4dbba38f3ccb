// Matrix products of quantized values, by their integer codes.
//
// The sum of an element is one of integers: exact, so the same in any order, on every instruction set, and
// what an integer kernel adds up. An instruction of AVX-512 VNNI multiplies and adds twice as many of them as
// one for float32 (products.h) does.
#ifndef DQAT_CORE_CODE_PRODUCTS_H_
#define DQAT_CORE_CODE_PRODUCTS_H_

#include <cstdint>
#include <vector>

#include "core/code_tiles.h"

namespace dqat::core {

// Codes of a left operand are at most 9 bits and a sign, which has room for those of any 8-bit grid; a right
// one's take 8 bits: the matrix, which is read again and again, stays in a nearer cache. So many products of
// them have a place in 32 bits:
constexpr float kMostLeftCode = 511.0f;
constexpr int64_t kMostPairs = 1 << 14;

inline int64_t Pairs(int64_t depth) { return (depth + 1) / 2; }

// The kernels of the instruction set that instruction_set.h has chosen.
const CodeKernels& CodeTiles();
// All that this processor has.
std::vector<const CodeKernels*> AvailableCodeTiles();

// results[r * stride + j] = factors[j] * the sum over p < pairs of left(r, 2 p) * panel(p, j, 0) + left(r, 2
// p + 1) * panel(p, j, 1), for r < rows and j < width <= 64, with left(r, k) = left[r * left_stride + k].
// `factors` has 64 elements, `panel` is aligned to 64 bytes.
void MultiplyCodes(int64_t rows, int64_t width, int64_t pairs, const int16_t* left, int64_t left_stride,
                   const int8_t* panel, const float* factors, float* results, int64_t stride);

}  // namespace dqat::core

#endif  // DQAT_CORE_CODE_PRODUCTS_H_
