// What the CUDA kernels of matrix products do; see cuda_work.h for `Block`, and for why it is written so.
//
// An element is one chain of fused multiply-adds over k = 0, 1, 2, ..., as in products.h: a row of a product
// has the same bits in every batch, on every GPU, and on a CPU with such an instruction. cuBLAS promises
// neither: it chooses a kernel, and whether several blocks share a sum, by the whole shape. Besides, its
// library would have to be the one that TensorFlow has loaded.
#ifndef DQAT_CORE_CUDA_PRODUCT_WORK_H_
#define DQAT_CORE_CUDA_PRODUCT_WORK_H_

#include <math.h>

#include <cstdint>

#include "core/cuda_plan.h"
#include "core/host_device.h"

namespace dqat::core::cuda {

// A block's threads stand 16 to a row, and thread t has rows t / 16 + 16 i and columns t % 16 + 16 j of the
// tile.
constexpr int kTileSide = 16;
static_assert(kTileSide * kTileSide == Plan::kThreads);
constexpr int kTileColumns = 4 * kTileSide;
constexpr int kTileDepth = 16;  // of both operands at a time in the block's shared memory
constexpr int kBankShift = 2;   // neighbouring values of k lie in other banks

template <int kRows>  // of a thread
struct TileMemory {
  float left[kTileDepth][kTileSide * kRows + kBankShift];
  float right[kTileDepth][kTileColumns + kBankShift];
};

template <int kRows>
struct TileSums {
  float at[kRows][4];
};

// `count` rows of a matrix: the element of row r and depth k is data[r * row_stride + k * depth_stride]. Rows
// beyond them are 0.
struct TileOperand {
  const float* data;
  int64_t row_stride, depth_stride, count;

  // Whether neighbouring threads read along the depth.
  DQAT_HOST_DEVICE bool by_depth() const { return depth_stride == 1; }
  DQAT_HOST_DEVICE float Get(int r, int64_t k) const {
    return r < count ? data[r * row_stride + k * depth_stride] : 0.0f;
  }
};

// Sums over k < depth of left(r, k) * right(j, k) for a tile.
template <int kRows, typename Block, typename Left, typename Right>
DQAT_HOST_DEVICE void MultiplyTile(Block& block, int64_t depth, const Left& left, const Right& right,
                                   TileMemory<kRows>& memory,
                                   typename Block::template PerThread<TileSums<kRows>>& sums) {
  constexpr int kTileRows = kTileSide * kRows;
  block.ForEachThread([&](int thread) { sums[thread] = {}; });
  for (int64_t first = 0; first < depth; first += kTileDepth) {
    const int count = depth - first < kTileDepth ? static_cast<int>(depth - first) : kTileDepth;
    block.Synchronize();  // all have used up the part before
    block.ForEachThread([&](int thread) {
      for (int i = thread; i < kTileDepth * kTileRows; i += Plan::kThreads) {
        const int k = left.by_depth() ? i % kTileDepth : i / kTileRows;
        const int r = left.by_depth() ? i / kTileDepth : i % kTileRows;
        if (k < count) memory.left[k][r] = left.Get(r, first + k);
      }
      for (int i = thread; i < kTileDepth * kTileColumns; i += Plan::kThreads) {
        const int k = right.by_depth() ? i % kTileDepth : i / kTileColumns;
        const int j = right.by_depth() ? i / kTileDepth : i % kTileColumns;
        if (k < count) memory.right[k][j] = right.Get(j, first + k);
      }
    });
    block.Synchronize();
    block.ForEachThread([&](int thread) {
      const int column = thread % kTileSide, row = thread / kTileSide;
      for (int k = 0; k < count; ++k) {
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < 4; ++j) {
            float& sum = sums[thread].at[i][j];
            sum = fmaf(memory.left[k][row + kTileSide * i], memory.right[k][column + kTileSide * j], sum);
          }
        }
      }
    });
  }
}

// results[r * columns + j] = sum over k of left(r, k) * right(j, k); a block's task is a tile.
struct ProductWork {
  static constexpr int kRows = 4;
  using Memory = TileMemory<kRows>;

  TileOperand left, right;
  int64_t depth;
  float* results;

  static constexpr int64_t kHeight = kTileSide * kRows;
  int64_t Tasks() const { return left.count == 0 ? 0 : (left.count + kHeight - 1) / kHeight * ColumnTiles(); }
  DQAT_HOST_DEVICE int64_t ColumnTiles() const { return (right.count + kTileColumns - 1) / kTileColumns; }

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t task, Memory& memory) const {
    const int64_t row = task / ColumnTiles() * kHeight, column = task % ColumnTiles() * kTileColumns;
    const TileOperand rows = Part(left, row), columns = Part(right, column);
    typename Block::template PerThread<TileSums<kRows>> sums;
    MultiplyTile<kRows>(block, depth, rows, columns, memory, sums);
    block.ForEachThread([&](int thread) {
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < 4; ++j) {
          const int64_t r = thread / kTileSide + kTileSide * i, c = thread % kTileSide + kTileSide * j;
          if (r < rows.count && c < columns.count) {
            results[(row + r) * right.count + column + c] = sums[thread].at[i][j];
          }
        }
      }
    });
  }

 private:
  DQAT_HOST_DEVICE static TileOperand Part(const TileOperand& whole, int64_t first) {
    return {whole.data + first * whole.row_stride, whole.row_stride, whole.depth_stride, whole.count - first};
  }
};

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_PRODUCT_WORK_H_
