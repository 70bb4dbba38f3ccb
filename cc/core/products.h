// Matrix products in float32 whose results are a function of their operands alone.
//
// An element of a product is one chain of multiply-adds over k = 0, 1, 2, ..., whatever the number of rows,
// the place of its row, the blocks that the product is cut into and the threads that compute them. So a row
// has the same bits in a batch of 32 and in one of 16: ranges found inside a recurrence stay exact when a
// batch is split over replicas. Libraries promise no such thing: their choice of a kernel, and with it of an
// order of sums, may depend on the number of rows.
//
// What was measured, GFLOP/s on one core with AVX-512 (Xeon, model 167; OpenBLAS 0.3 of the wheel
// scipy-openblas32, one thread), as rows x columns x depth:
//
//                     32x2048x512  16x2048x512  16x4096x1024  32x512x128  1600x2048x512  512x2048x1600
//   OpenBLAS                   78           54            52         113            149            139
//   this                      142          124           117         165            141            153
//
// A recurrence multiplies few rows with the same matrix again and again. Here the matrix is packed once a
// step, into panels of 64 columns; a library's sgemm packs it at every call.
#ifndef DQAT_CORE_PRODUCTS_H_
#define DQAT_CORE_PRODUCTS_H_

#include <cstdint>

#include "core/parallel.h"
#include "core/product_tiles.h"

namespace dqat::core {

// The tile of the instruction set that instruction_set.h has chosen.
const ProductKernels& ProductTiles();

inline int64_t Panels(int64_t columns) { return (columns + kPanelColumns - 1) / kPanelColumns; }
// Floats that [depth, columns] takes when packed.
inline int64_t PackedSize(int64_t columns, int64_t depth) { return Panels(columns) * depth * kPanelColumns; }

// Calls body(first row, height) for tiles of nearly equal height: 32 rows are 6, 6, 5, 5, 5, 5.
template <typename Body>
void ForEachTile(int64_t rows, Body body) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t tile = 0, row = 0; tile < tiles; ++tile) {
    const int64_t height = (rows - row + tiles - tile - 1) / (tiles - tile);
    body(row, height);
    row += height;
  }
}

// Packs panel `index` of `right`, whose rows here are its columns: right(column, k). Columns past the last
// are 0.
void PackPanel(int64_t index, int64_t columns, int64_t depth, ProductOperand right, float* panel);

// results[r * stride + j] = sum over k of left(r, k) * panel[k * 64 + j], for r < rows and j < width <= 64;
// the sums start at `results` where `continues`, else at 0.
void MultiplyPanel(int64_t rows, int64_t width, int64_t depth, ProductOperand left, const float* panel,
                   float* results, int64_t stride, bool continues);

// results[r * 64 + j] = factor * the sum over k of left(r, k) * panel(k, j), for r < rows and j < 64, with a
// panel of ProductKernels::encode_columns; added to `results` where `continues`.
void MultiplyCodePanel(int64_t rows, int64_t depth, ProductOperand left, const UpperHalf* panel, float factor,
                       float* results, bool continues);

// Packs all panels.
void Pack(int64_t columns, int64_t depth, ProductOperand right, float* packed, const Parallel& parallel);

// results[r * stride + j] = sum over k of left(r, k) * right(j, k), for j < columns, with `right` packed.
void Multiply(int64_t rows, int64_t columns, int64_t depth, ProductOperand left, const float* packed,
              float* results, int64_t stride, const Parallel& parallel);

}  // namespace dqat::core

#endif  // DQAT_CORE_PRODUCTS_H_
