#include "core/fake_quant.h"

#include <algorithm>
#include <cstring>

#include "core/chunks.h"
#include "core/instruction_set.h"

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

void StartPartial(const RecordPartials& record, int64_t block, int64_t entries) {
  if (PartialOf(record, block) != block) return;
  std::fill_n(record.min + block * entries, entries, Range().min);
  std::fill_n(record.max + block * entries, entries, Range().max);
}

}  // namespace

template <typename T>
void FakeQuantBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const GridTable& grids,
                    const T* x, T* y, RecordPartials record) {
  const RowKernels& kernels = Kernels();
  const bool track = record.min != nullptr;
  Stage<T> stage(layout, plan);
  if (!layout.interleaved()) {
    const bool streams = Streams(layout, x, y);
    ForEachChunk<T>(layout, plan, block, [&](const Chunk& chunk) {
      const int64_t n = chunk.elements;
      const float* values = stage.Load(kernels, x + chunk.offset, n);
      float* results = stage.Results(y + chunk.offset);
      float min = Range().min, max = Range().max;
      if (grids.passthrough()[chunk.channel] != 0.0f) {
        // In a quantizer's first step only.
        if (track) kernels.minmax(n, values, &min, &max);
        std::memcpy(y + chunk.offset, x + chunk.offset, n * sizeof(T));
      } else {
        const RowGrid grid = ChannelGrid(grids, chunk.channel);
        const bool divide = layout.divides_by_scale();
        ForEachPiece(kernels, streams, n, results, [&](int64_t start, int64_t count, float* to) {
          if (track) {
            kernels.quantize_track(count, grid, divide, values + start, to, &min, &max);
          } else {
            kernels.quantize(count, grid, divide, values + start, to);
          }
        });
        stage.Store(kernels, y + chunk.offset, n);
      }
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
                        const GridTable& grids, const T* dy, const T* x, T* dx, float* dmin, float* dmax) {
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
      kernels.gradient(chunk.elements, grids.grad_min()[chunk.channel], grids.grad_max()[chunk.channel],
                       slopes, values, results, dmin + chunk.row, dmax + chunk.row);
    }
    slope_stage.Store(kernels, dx + chunk.offset, chunk.elements);
  });
}

#define DQAT_INSTANTIATE(T)                                                                                 \
  template void FakeQuantBlock(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&, const T*, \
                               T*, RecordPartials);                                                         \
  template void MinMaxBlock(const ChannelLayout&, const BlockPlan&, int64_t, const T*, RecordPartials);     \
  template void FakeQuantGradBlock(const ChannelLayout&, const BlockPlan&, int64_t, const GridTable&,       \
                                   const T*, const T*, T*, float*, float*)
DQAT_INSTANTIATE(float);
DQAT_INSTANTIATE(Half);
DQAT_INSTANTIATE(BFloat16);
#undef DQAT_INSTANTIATE

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
