#include "core/learned_step.h"

#include "core/chunks.h"
#include "core/instruction_set.h"

namespace dqat::core {

template <typename T>
void LearnedStepGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                          const GridTable& grids, float levels, const T* dy, const T* x, T* dx,
                          float* dstep) {
  const RowKernels& kernels = Kernels();
  Stage<T> value_stage(layout, plan), slope_stage(layout, plan);
  float* block_dstep = dstep + block * layout.columns() * plan.repeat;
  if (layout.interleaved()) std::fill_n(block_dstep, layout.columns() * plan.repeat, 0.0f);
  ForEachChunk<T>(layout, plan, block, [&](const Chunk& chunk) {
    const float* values = value_stage.Load(kernels, x + chunk.offset, chunk.elements);
    const float* slopes = slope_stage.Load(kernels, dy + chunk.offset, chunk.elements);
    float* results = slope_stage.Results(dx + chunk.offset);
    if (layout.interleaved()) {
      RunRows(chunk.count, layout.columns(), plan.repeat, [&](int64_t rows, int64_t n, int64_t offset) {
        kernels.channels_step_gradient(rows, n, Grids(grids), levels, slopes + offset, values + offset,
                                       results + offset, block_dstep);
      });
    } else {
      dstep[chunk.row] = 0.0f;
      kernels.step_gradient(chunk.elements, ChannelGrid(grids, chunk.channel), layout.divides_by_scale(),
                            levels, slopes, values, results, dstep + chunk.row);
    }
    slope_stage.Store(kernels, dx + chunk.offset, chunk.elements);
  });
}

#define DQAT_INSTANTIATE(T)                                                                             \
  template void LearnedStepGradBlock(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&, \
                                     float, const T*, const T*, T*, float*)
DQAT_INSTANTIATE(float);
DQAT_INSTANTIATE(Half);
DQAT_INSTANTIATE(BFloat16);
#undef DQAT_INSTANTIATE

}  // namespace dqat::core
