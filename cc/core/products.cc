#include "core/products.h"

#include <algorithm>
#include <cstring>

#include "core/instruction_set.h"

namespace dqat::core {
namespace {

// Rows that a task multiplies with one panel: enough to read the panel from the second-level cache seldom.
constexpr int64_t kTaskRows = 192;

}  // namespace

const ProductKernels& ProductTiles() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  const char* name = InstructionSet();
  if (std::strcmp(name, "avx512") == 0) return avx512::kProductKernels;
  if (std::strcmp(name, "avx2") == 0) return avx2::kProductKernels;
#endif
  return baseline::kProductKernels;
}

void PackPanel(int64_t index, int64_t columns, int64_t depth, ProductOperand right, float* panel) {
  const int64_t first = index * kPanelColumns;
  const int64_t count = std::min<int64_t>(kPanelColumns, columns - first);
  const float* source = right.data + first * right.row_stride;
  if (right.row_stride == 1) {
    for (int64_t k = 0; k < depth; ++k) {
      float* row = std::copy_n(source + k * right.depth_stride, count, panel + k * kPanelColumns);
      std::fill_n(row, kPanelColumns - count, 0.0f);
    }
    return;
  }
  // Few values of k at a time: a cache line of the source is read once.
  constexpr int64_t kDepths = 16;
  for (int64_t begin = 0; begin < depth; begin += kDepths) {
    const int64_t end = std::min(depth, begin + kDepths);
    for (int64_t j = 0; j < count; ++j) {
      const float* column = source + j * right.row_stride;
      for (int64_t k = begin; k < end; ++k) panel[k * kPanelColumns + j] = column[k * right.depth_stride];
    }
    for (int64_t k = begin; k < end; ++k) {
      std::fill(panel + k * kPanelColumns + count, panel + (k + 1) * kPanelColumns, 0.0f);
    }
  }
}

void MultiplyPanel(int64_t rows, int64_t width, int64_t depth, ProductOperand left, const float* panel,
                   float* results, int64_t stride, bool continues) {
  const ProductKernels& kernels = ProductTiles();
  ForEachTile(rows, [&](int64_t row, int64_t height) {
    const ProductOperand part = {left.data + row * left.row_stride, left.row_stride, left.depth_stride};
    float* target = results + row * stride;
    if (width == kPanelColumns) {
      kernels.tile(height, depth, part, panel, target, stride, continues);
      return;
    }
    float whole[kTileRows * kPanelColumns] = {};
    for (int64_t r = 0; continues && r < height; ++r) {
      std::copy_n(target + r * stride, width, whole + r * kPanelColumns);
    }
    kernels.tile(height, depth, part, panel, whole, kPanelColumns, continues);
    for (int64_t r = 0; r < height; ++r) std::copy_n(whole + r * kPanelColumns, width, target + r * stride);
  });
}

void MultiplyCodePanel(int64_t rows, int64_t depth, ProductOperand left, const UpperHalf* panel, float factor,
                       float* results, bool continues) {
  const ProductKernels& kernels = ProductTiles();
  ForEachTile(rows, [&](int64_t row, int64_t height) {
    kernels.code_tile(height, depth, {left.data + row * left.row_stride, left.row_stride, left.depth_stride},
                      panel, factor, results + row * kPanelColumns, kPanelColumns, continues);
  });
}

void Pack(int64_t columns, int64_t depth, ProductOperand right, float* packed, const Parallel& parallel) {
  parallel.ForEach(Panels(columns), depth * kPanelColumns, [&](int64_t index) {
    PackPanel(index, columns, depth, right, packed + index * depth * kPanelColumns);
  });
}

void Multiply(int64_t rows, int64_t columns, int64_t depth, ProductOperand left, const float* packed,
              float* results, int64_t stride, const Parallel& parallel) {
  const int64_t panels = Panels(columns), chunks = (rows + kTaskRows - 1) / kTaskRows;
  const int64_t cost = std::min(rows, kTaskRows) * depth * kPanelColumns / 16;
  parallel.ForEach(panels * chunks, cost, [&](int64_t task) {
    const int64_t panel = task / chunks, first = task % chunks * kTaskRows;
    const int64_t column = panel * kPanelColumns;
    MultiplyPanel(std::min(kTaskRows, rows - first), std::min<int64_t>(kPanelColumns, columns - column),
                  depth, {left.data + first * left.row_stride, left.row_stride, left.depth_stride},
                  packed + column * depth, results + first * stride + column, stride, /*continues=*/false);
  });
}

}  // namespace dqat::core
