#include "core/slope_reach.h"

#include <cstring>

#include "core/chunks.h"
#include "core/instruction_set.h"
#include "core/reach_rows.h"

namespace dqat::core {
namespace {

const ReachRowKernels& ReachKernels() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  const char* name = InstructionSet();
  if (std::strcmp(name, "avx512") == 0) return avx512::kReachRowKernels;
  if (std::strcmp(name, "avx2") == 0) return avx2::kReachRowKernels;
#endif
  return baseline::kReachRowKernels;
}

}  // namespace

template <typename T>
void FakeQuantReachBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                         const GridTable& grids, Activation activation, const T* x, T* y, uint64_t* reach,
                         RecordPartials record) {
  // So that no two rows, which may be two threads', share a word.
  static_assert(BlockPlan::kMaxRowElements % kReachValues == 0 && kStreamedElements % kReachValues == 0);
  const RowKernels& kernels = Kernels();
  const ReachRowKernels& reach_kernels = ReachKernels();
  Stage<T> stage(layout, plan);
  const bool streams = Streams(layout, x, y);
  const SlopeBounds bounds = BoundSlopes(*grids.grad_min(), *grids.grad_max(), activation);
  ForEachChunk<T>(layout, plan, block, [&](const Chunk& chunk) {
    const int64_t n = chunk.elements;
    const float* values = stage.Load(kernels, x + chunk.offset, n);
    float* results = stage.Results(y + chunk.offset);
    uint64_t* words = reach + chunk.offset / kReachValues;
    float min = Range().min, max = Range().max;
    if (grids.any_passthrough()) {
      // In a quantizer's first step only.
      reach_kernels.reach(n, bounds, values, words);
      if (activation == Activation::kLinear) {
        kernels.minmax(n, values, &min, &max);
        std::memcpy(y + chunk.offset, x + chunk.offset, n * sizeof(T));
      } else {
        for (int64_t i = 0; i < n; ++i) results[i] = Activate(values[i], activation) + 0.0f;  // -0 is +0
        kernels.minmax(n, results, &min, &max);
        stage.Store(kernels, y + chunk.offset, n);
      }
    } else {
      const RowGrid grid = ChannelGrid(grids, 0);
      ForEachPiece(kernels, streams, n, results, [&](int64_t start, int64_t count, float* to) {
        reach_kernels.quantize(count, grid, layout.divides_by_scale(), activation, bounds, values + start, to,
                               words + start / kReachValues, &min, &max);
      });
      stage.Store(kernels, y + chunk.offset, n);
    }
    record.min[chunk.row] = min;
    record.max[chunk.row] = max;
  });
  if (streams) kernels.finish_stream();
}

template <typename T>
void ReachGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const T* dy,
                    const uint64_t* reach, T* dx, float* dmin, float* dmax) {
  const RowKernels& kernels = Kernels();
  const ReachRowKernels& reach_kernels = ReachKernels();
  Stage<T> stage(layout, plan);
  ForEachChunk<T>(layout, plan, block, [&](const Chunk& chunk) {
    const float* slopes = stage.Load(kernels, dy + chunk.offset, chunk.elements);
    float* results = stage.Results(dx + chunk.offset);
    dmin[chunk.row] = dmax[chunk.row] = 0.0f;
    reach_kernels.gradient(chunk.elements, slopes, reach + chunk.offset / kReachValues, results,
                           dmin + chunk.row, dmax + chunk.row);
    stage.Store(kernels, dx + chunk.offset, chunk.elements);
  });
}

#define DQAT_INSTANTIATE(T)                                                                                \
  template void FakeQuantReachBlock(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&,     \
                                    Activation, const T*, T*, uint64_t*, RecordPartials);                  \
  template void ReachGradBlock(const ChannelLayout&, const BlockPlan&, int64_t, const T*, const uint64_t*, \
                               T*, float*, float*)
DQAT_INSTANTIATE(float);
DQAT_INSTANTIATE(Half);
DQAT_INSTANTIATE(BFloat16);
#undef DQAT_INSTANTIATE

}  // namespace dqat::core
