#include "core/fake_quant.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/chunks.h"
#include "core/instruction_set.h"
#include "core/streaming.h"

namespace dqat::core {
GridTable::GridTable(const ChannelLayout& layout, const BlockPlan& plan)
    : channels_(layout.channels),
      // At least 1: where channels are empty, they have grids all the same.
      run_(layout.interleaved() ? std::max<int64_t>(layout.inner, 1) : 1),
      columns_(channels_ * run_),
      entries_(columns_ * plan.repeat),
      stride_(ArrayStride(entries_)),
      data_(new (kAlignment) float[kFields * stride_]) {}

void GridTable::Set(int64_t channel, const Grid& grid) {
  const float fields[kFields] = {
      grid.nudged_min, grid.nudged_max, grid.scale,    grid.inv_scale,
      grid.zero_level, grid.grad_min,   grid.grad_max, grid.passthrough ? 1.0f : 0.0f};
  for (int64_t field = 0; field < kFields; ++field) {
    for (int64_t first = channel * run_; first < entries_; first += columns_) {
      std::fill_n(Field(field) + first, run_, fields[field]);
    }
  }
  any_passthrough_ = any_passthrough_ || grid.passthrough;
}

bool GridTable::SetAll(const float* min, const float* max, const QuantizerSpec& spec) {
  const GridArrays arrays = {Field(0), Field(1), Field(2), Field(3), Field(4), Field(5), Field(6), Field(7)};
  const GridCounts counts = Kernels().make_grids(channels_, static_cast<float>(spec.quant_min()),
                                                 static_cast<float>(spec.quant_max()), min, max, arrays);
  any_passthrough_ = counts.empty > 0;
  for (int64_t field = 0; field < kFields && entries_ > channels_; ++field) {
    float* values = Field(field);
    // From the last on: so no value is overwritten before it is read.
    for (int64_t channel = channels_ - 1; run_ > 1 && channel >= 0; --channel) {
      std::fill_n(values + channel * run_, run_, values[channel]);
    }
    for (int64_t first = columns_; first < entries_; first += columns_) {
      std::memcpy(values + first, values, columns_ * sizeof(float));
    }
  }
  return counts.invalid == 0;
}

namespace {

// Where the record of an interleaved layout's block goes.
int64_t PartialOf(const RecordPartials& record, int64_t block) {
  return record.continued < 0 ? block : record.continued;
}

// Elements that are computed before they are streamed: few, so that reading and writing overlap.
constexpr int64_t kStreamedElements = 512;

// Calls quantize(n, values, results) on a contiguous row, or on its pieces where `y` is streamed.
template <typename Quantize>
void QuantizeRow(const RowKernels& kernels, bool streams, int64_t n, const float* x, float* y,
                 Quantize quantize) {
  if (!streams) return quantize(n, x, y);
  alignas(64) float results[kStreamedElements];
  for (int64_t i = 0; i < n; i += kStreamedElements) {
    const int64_t elements = std::min(kStreamedElements, n - i);
    quantize(elements, x + i, results);
    kernels.stream(elements, results, y + i);
  }
}

void StartPartial(const RecordPartials& record, int64_t block, int64_t entries) {
  if (PartialOf(record, block) != block) return;
  std::fill_n(record.min + block * entries, entries, Range().min);
  std::fill_n(record.max + block * entries, entries, Range().max);
}

}  // namespace

template <typename T>
void FakeQuantBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const GridTable& grids,
                    const T* x, T* y, RecordPartials record, Activation activation) {
  const RowKernels& kernels = Kernels();
  const bool track = record.min != nullptr;
  Stage<T> stage(layout, plan);
  // Rows of floats only. Interleaved ones are walked as several streams, and pieces that fit the first-level
  // cache are too short for those; the gradient's sums would depend on the pieces.
  const bool streams = std::is_same_v<T, float> && !layout.interleaved() &&
                       static_cast<const void*>(x) != y &&
                       layout.size() > StreamingBytes() / static_cast<int64_t>(sizeof(float));
  if (!layout.interleaved()) {
    ForEachChunk<T>(layout, plan, block, [&](const Chunk& chunk) {
      const int64_t n = chunk.elements;
      const float* values = stage.Load(kernels, x + chunk.offset, n);
      float* results = stage.Results(y + chunk.offset);
      const bool passthrough = grids.passthrough()[chunk.channel] != 0.0f;
      float min = Range().min, max = Range().max;
      if (passthrough) {
        // In a quantizer's first step only.
        if (activation != Activation::kLinear) {
          for (int64_t i = 0; i < n; ++i) results[i] = Activate(values[i], activation) + 0.0f;  // -0 is +0
          if (track) kernels.minmax(n, results, &min, &max);
          stage.Store(kernels, y + chunk.offset, n);
        } else {
          if (track) kernels.minmax(n, values, &min, &max);
          std::memcpy(y + chunk.offset, x + chunk.offset, n * sizeof(T));
        }
      } else if (track) {
        RowGrid grid = ChannelGrid(grids, chunk.channel);
        // A nudged range contains 0, so that both clamp at once.
        grid.lowest = Activate(grid.lowest, activation);
        grid.highest = Activate(grid.highest, activation);
        QuantizeRow(kernels, streams, n, values, results, [&](int64_t count, const float* from, float* to) {
          kernels.quantize_track(count, grid, layout.divides_by_scale(), activation, from, to, &min, &max);
        });
      } else {
        const RowGrid grid = ChannelGrid(grids, chunk.channel);
        QuantizeRow(kernels, streams, n, values, results, [&](int64_t count, const float* from, float* to) {
          kernels.quantize(count, grid, layout.divides_by_scale(), from, to);
        });
      }
      if (!passthrough) stage.Store(kernels, y + chunk.offset, n);
      if (track) {
        record.min[chunk.row] = min;
        record.max[chunk.row] = max;
      }
    });
    if (streams) kernels.finish_stream();
    return;
  }
  const int64_t entries = layout.columns() * plan.repeat;
  float *min = nullptr, *max = nullptr;
  if (track) {
    min = record.min + PartialOf(record, block) * entries;
    max = record.max + PartialOf(record, block) * entries;
    StartPartial(record, block, entries);
  }
  ForEachChunk<T>(layout, plan, block, [&](const Chunk& chunk) {
    const float* values = stage.Load(kernels, x + chunk.offset, chunk.elements);
    float* results = stage.Results(y + chunk.offset);
    RunRows(chunk.count, layout.columns(), plan.repeat, [&](int64_t rows, int64_t n, int64_t offset) {
      if (track) {
        kernels.channels_quantize_track(rows, n, Grids(grids), values + offset, results + offset, min, max);
      } else {
        kernels.channels_quantize(rows, n, Grids(grids), values + offset, results + offset);
      }
    });
    stage.Store(kernels, y + chunk.offset, chunk.elements);
    if (!grids.any_passthrough()) return;
    // In a quantizer's first step only.
    for (int64_t i = 0; i < chunk.elements; ++i) {
      if (grids.passthrough()[i % layout.columns()] != 0.0f) y[chunk.offset + i] = x[chunk.offset + i];
    }
  });
}

template <typename T>
void MinMaxBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const T* x,
                 RecordPartials record) {
  const RowKernels& kernels = Kernels();
  Stage<T> stage(layout, plan);
  const int64_t entries = layout.columns() * plan.repeat;
  const int64_t partial = PartialOf(record, block) * entries;
  if (layout.interleaved()) StartPartial(record, block, entries);
  ForEachChunk<T>(layout, plan, block, [&](const Chunk& chunk) {
    const float* values = stage.Load(kernels, x + chunk.offset, chunk.elements);
    if (!layout.interleaved()) {
      float min = Range().min, max = Range().max;
      kernels.minmax(chunk.elements, values, &min, &max);
      record.min[chunk.row] = min;
      record.max[chunk.row] = max;
      return;
    }
    RunRows(chunk.count, layout.columns(), plan.repeat, [&](int64_t rows, int64_t n, int64_t offset) {
      kernels.channels_minmax(rows, n, values + offset, record.min + partial, record.max + partial);
    });
  });
}

template <typename T>
void FakeQuantGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                        const GridTable& grids, const T* dy, const T* x, T* dx, float* dmin, float* dmax,
                        Activation activation) {
  const RowKernels& kernels = Kernels();
  Stage<T> value_stage(layout, plan), slope_stage(layout, plan);
  const int64_t entries = layout.columns() * plan.repeat;
  if (layout.interleaved()) {
    std::fill_n(dmin + block * entries, entries, 0.0f);
    std::fill_n(dmax + block * entries, entries, 0.0f);
  }
  ForEachChunk<T>(layout, plan, block, [&](const Chunk& chunk) {
    const float* values = value_stage.Load(kernels, x + chunk.offset, chunk.elements);
    const float* slopes = slope_stage.Load(kernels, dy + chunk.offset, chunk.elements);
    float* results = slope_stage.Results(dx + chunk.offset);
    if (layout.interleaved()) {
      RunRows(chunk.count, layout.columns(), plan.repeat, [&](int64_t rows, int64_t n, int64_t offset) {
        kernels.channels_gradient(rows, n, Grids(grids), slopes + offset, values + offset, results + offset,
                                  dmin + block * entries, dmax + block * entries);
      });
    } else {
      dmin[chunk.row] = dmax[chunk.row] = 0.0f;
      const SlopeBounds bounds =
          BoundSlopes(grids.grad_min()[chunk.channel], grids.grad_max()[chunk.channel], activation);
      kernels.gradient(chunk.elements, bounds, slopes, values, results, dmin + chunk.row, dmax + chunk.row);
    }
    slope_stage.Store(kernels, dx + chunk.offset, chunk.elements);
  });
}

template void FakeQuantBlock<float>(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&,
                                    const float*, float*, RecordPartials, Activation);
template void MinMaxBlock<float>(const ChannelLayout&, const BlockPlan&, int64_t, const float*,
                                 RecordPartials);
template void FakeQuantGradBlock<float>(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&,
                                        const float*, const float*, float*, float*, float*, Activation);
template void FakeQuantBlock<Half>(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&,
                                   const Half*, Half*, RecordPartials, Activation);
template void MinMaxBlock<Half>(const ChannelLayout&, const BlockPlan&, int64_t, const Half*, RecordPartials);
template void FakeQuantGradBlock<Half>(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&,
                                       const Half*, const Half*, Half*, float*, float*, Activation);
template void FakeQuantBlock<BFloat16>(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&,
                                       const BFloat16*, BFloat16*, RecordPartials, Activation);
template void MinMaxBlock<BFloat16>(const ChannelLayout&, const BlockPlan&, int64_t, const BFloat16*,
                                    RecordPartials);
template void FakeQuantGradBlock<BFloat16>(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&,
                                           const BFloat16*, const BFloat16*, BFloat16*, float*, float*,
                                           Activation);

namespace {

// Calls merge(channels, first) for partials [first, first + channels) of channels 0, 1, ..., in order, or
// merge_run(channel, first, count) where a channel has several in a row. No division: there may be as many
// partials as a tenth of the tensor has elements.
template <typename Merge, typename MergeRun>
void ForEachPartial(const ChannelLayout& layout, const BlockPlan& plan, int64_t begin, int64_t end,
                    Merge merge, MergeRun merge_run) {
  const int64_t run = layout.interleaved() ? layout.inner : plan.pieces_per_row;
  for (int64_t first = begin; first < end; first += layout.channels * run) {
    if (run == 1) {
      merge(layout.channels, first);
    } else {
      for (int64_t channel = 0; channel < layout.channels; ++channel) {
        merge_run(channel, first + channel * run, run);
      }
    }
  }
}

}  // namespace

void MergeRecords(const ChannelLayout& layout, const BlockPlan& plan, RecordPartials partials, float* min,
                  float* max, const std::vector<int64_t>* started) {
  std::fill_n(min, layout.channels, Range().min);
  std::fill_n(max, layout.channels, Range().max);
  const auto merge_between = [&](int64_t begin, int64_t end) {
    ForEachPartial(
        layout, plan, begin, end,
        [&](int64_t channels, int64_t first) {
          for (int64_t channel = 0; channel < channels; ++channel) {
            min[channel] = std::min(min[channel], partials.min[first + channel]);
            max[channel] = std::max(max[channel], partials.max[first + channel]);
          }
        },
        [&](int64_t channel, int64_t first, int64_t count) {
          min[channel] =
              std::min(min[channel], *std::min_element(partials.min + first, partials.min + first + count));
          max[channel] =
              std::max(max[channel], *std::max_element(partials.max + first, partials.max + first + count));
        });
  };
  if (started == nullptr || !layout.interleaved()) {
    merge_between(0, plan.partials);
  } else {
    const int64_t entries = layout.columns() * plan.repeat;
    for (const int64_t block : *started) merge_between(block * entries, (block + 1) * entries);
  }
  for (int64_t channel = 0; channel < layout.channels; ++channel) {
    min[channel] += 0.0f;  // -0 becomes +0, so that equal records are equal bits
    max[channel] += 0.0f;
  }
}

void MergeSums(const ChannelLayout& layout, const BlockPlan& plan, const float* partials, float* sum) {
  std::fill_n(sum, layout.channels, 0.0f);
  ForEachPartial(
      layout, plan, 0, plan.partials,
      [&](int64_t channels, int64_t first) {
        for (int64_t channel = 0; channel < channels; ++channel) sum[channel] += partials[first + channel];
      },
      [&](int64_t channel, int64_t first, int64_t count) {
        for (int64_t i = first; i < first + count; ++i) sum[channel] += partials[i];
      });
}

}  // namespace dqat::core
