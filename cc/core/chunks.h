// How the block functions walk a block, in the pieces that the kernels of rows.h take. Only they include
// this.
#ifndef DQAT_CORE_CHUNKS_H_
#define DQAT_CORE_CHUNKS_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/fake_quant.h"
#include "core/layout.h"
#include "core/rows.h"
#include "core/small_floats.h"
#include "core/streaming.h"

namespace dqat::core {

inline RowGrids Grids(const GridTable& grids) {
  return {grids.nudged_min(), grids.nudged_max(), grids.scale(),   grids.inv_scale(),
          grids.zero_level(), grids.grad_min(),   grids.grad_max()};
}

inline RowGrid ChannelGrid(const GridTable& grids, int64_t channel) {
  return {grids.nudged_min()[channel], grids.nudged_max()[channel], grids.scale()[channel],
          grids.inv_scale()[channel], grids.zero_level()[channel]};
}

// Elements that are converted at a time, where they have to be: within the first-level cache.
constexpr int64_t kStageElements = 4096;

// Rows [row, row + count) of a block: `elements` consecutive elements from `offset`, all of `channel`
// unless the layout is interleaved.
struct Chunk {
  int64_t row, count, channel, offset, elements;
};

// Cuts a block into chunks: whole where elements are float already, else small enough to be converted.
template <typename T, typename Visit>
void ForEachChunk(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, Visit visit) {
  const int64_t begin = block * plan.rows_per_block;
  const int64_t end = std::min(plan.rows, begin + plan.rows_per_block);
  if (layout.interleaved()) {
    int64_t step = end - begin;
    if (!std::is_same_v<T, float>) {
      step = std::max<int64_t>(1, kStageElements / (layout.columns() * plan.repeat)) * plan.repeat;
    }
    for (int64_t row = begin; row < end; row += step) {
      const int64_t count = std::min(step, end - row);
      visit(Chunk{row, count, 0, row * layout.columns(), count * layout.columns()});
    }
    return;
  }
  for (int64_t row = begin; row < end; ++row) {
    const int64_t vector = row / plan.pieces_per_row;
    const int64_t start = (row % plan.pieces_per_row) * BlockPlan::kMaxRowElements;
    const int64_t n = std::min(layout.inner - start, BlockPlan::kMaxRowElements);
    visit(Chunk{row, 1, vector % layout.channels, vector * layout.inner + start, n});
  }
}

// Float memory for the chunks of one block; none where elements are float already.
template <typename T>
class Stage {
 public:
  Stage(const ChannelLayout& layout, const BlockPlan& plan) {
    if (std::is_same_v<T, float>) return;
    const int64_t interleaved = std::max(kStageElements, layout.columns() * plan.repeat);
    memory_.resize(layout.interleaved() ? interleaved : std::min(layout.inner, BlockPlan::kMaxRowElements));
  }

  const float* Load(const RowKernels& kernels, const T* x, int64_t n) {
    if constexpr (std::is_same_v<T, float>) {
      return x;
    } else if constexpr (std::is_same_v<T, Half>) {
      kernels.load_half(n, x, memory_.data());
    } else {
      kernels.load_bfloat16(n, x, memory_.data());
    }
    return memory_.data();
  }

  // Where the float results of a chunk go before Store.
  float* Results(T* y) {
    if constexpr (std::is_same_v<T, float>) return y;
    return memory_.data();
  }

  void Store(const RowKernels& kernels, T* y, int64_t n) {
    if constexpr (std::is_same_v<T, Half>) kernels.store_half(n, memory_.data(), y);
    if constexpr (std::is_same_v<T, BFloat16>) kernels.store_bfloat16(n, memory_.data(), y);
  }

 private:
  std::vector<float> memory_;
};

// Elements that are computed before they are streamed: few, so that reading and writing overlap.
constexpr int64_t kStreamedElements = 512;

// Rows of floats only. Interleaved ones are walked as several streams, and pieces that fit the first-level
// cache are too short for those; the gradient's sums would depend on the pieces.
template <typename T>
bool Streams(const ChannelLayout& layout, const T* x, const T* y) {
  return std::is_same_v<T, float> && x != y &&
         layout.size() > StreamingBytes() / static_cast<int64_t>(sizeof(float));
}

// Calls quantize(start, n, results) on a contiguous row, or on its pieces where `y` is streamed.
template <typename Quantize>
void ForEachPiece(const RowKernels& kernels, bool streams, int64_t n, float* y, Quantize quantize) {
  if (!streams) return quantize(0, n, y);
  alignas(64) float results[kStreamedElements];
  for (int64_t start = 0; start < n; start += kStreamedElements) {
    const int64_t elements = std::min(kStreamedElements, n - start);
    quantize(start, elements, results);
    kernels.stream(elements, results, y + start);
  }
}

// Runs a kernel of rows over `count` rows of `columns`: `repeat` at a time, then the rest singly.
template <typename Run>
void RunRows(int64_t count, int64_t columns, int64_t repeat, Run run) {
  const int64_t joined = count / repeat;
  if (joined > 0) run(joined, columns * repeat, 0);
  const int64_t done = joined * repeat;
  if (done < count) run(count - done, columns, done * columns);
}

}  // namespace dqat::core

#endif  // DQAT_CORE_CHUNKS_H_
