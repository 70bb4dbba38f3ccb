#include "core/fake_quant.h"

#include <atomic>
#include <cstring>

#include "core/rows.h"

namespace dqat::core {
namespace {

const RowKernels* BestKernels() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
    return &avx512::kRowKernels;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::kRowKernels;
#endif
  return &baseline::kRowKernels;
}

std::vector<const RowKernels*> AvailableKernels() {
  std::vector<const RowKernels*> all = {&baseline::kRowKernels};
#ifdef DQAT_X86_INSTRUCTION_SETS
  const RowKernels* best = BestKernels();
  if (best != &baseline::kRowKernels) all.push_back(&avx2::kRowKernels);
  if (best == &avx512::kRowKernels) all.push_back(best);
#endif
  return all;
}

std::atomic<const RowKernels*>& Current() {
  static std::atomic<const RowKernels*> current{BestKernels()};
  return current;
}

const RowKernels& Kernels() { return *Current().load(std::memory_order_relaxed); }

RowGrids Grids(const GridTable& grids) {
  return {grids.nudged_min(), grids.nudged_max(), grids.scale(),   grids.inv_scale(),
          grids.zero_level(), grids.grad_min(),   grids.grad_max()};
}

RowGrid ChannelGrid(const GridTable& grids, int64_t channel) {
  return {grids.nudged_min()[channel], grids.nudged_max()[channel], grids.scale()[channel],
          grids.inv_scale()[channel], grids.zero_level()[channel]};
}

// The rows of one block.
struct BlockRows {
  BlockRows(const BlockPlan& plan, int64_t block)
      : begin(block * plan.rows_per_block), end(std::min(plan.rows, begin + plan.rows_per_block)) {}
  int64_t begin, end;
};

// Calls visit(row, channel, offset, n) for every contiguous row of a block.
template <typename Visit>
void ForEachRow(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, Visit visit) {
  const BlockRows rows(plan, block);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const int64_t vector = row / plan.pieces_per_row;
    const int64_t start = (row % plan.pieces_per_row) * BlockPlan::kMaxRowElements;
    const int64_t n = std::min(layout.inner - start, BlockPlan::kMaxRowElements);
    visit(row, vector % layout.channels, vector * layout.inner + start, n);
  }
}

// Channels without a range pass their values through. It happens in a quantizer's first step only.
void PassThroughRows(const GridTable& grids, int64_t rows, const float* x, float* y) {
  const int64_t channels = grids.channels();
  for (int64_t row = 0; row < rows; ++row, x += channels, y += channels) {
    for (int64_t c = 0; c < channels; ++c) {
      if (grids.passthrough()[c] != 0.0f) y[c] = x[c];
    }
  }
}

}  // namespace

void GridTable::Set(int64_t channel, const Grid& grid) {
  const float fields[kFields] = {
      grid.nudged_min, grid.nudged_max, grid.scale,    grid.inv_scale,
      grid.zero_level, grid.grad_min,   grid.grad_max, grid.passthrough ? 1.0f : 0.0f};
  for (int64_t field = 0; field < kFields; ++field) data_[field * channels_ + channel] = fields[field];
  any_passthrough_ = any_passthrough_ || grid.passthrough;
}

void FakeQuantBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const GridTable& grids,
                    const float* x, float* y, RecordPartials record) {
  const RowKernels& kernels = Kernels();
  if (layout.interleaved()) {
    const BlockRows rows(plan, block);
    const int64_t offset = rows.begin * layout.channels, count = rows.end - rows.begin;
    if (record.min == nullptr) {
      kernels.channels_quantize(count, layout.channels, Grids(grids), x + offset, y + offset);
    } else {
      float* min = record.min + block * layout.channels;
      float* max = record.max + block * layout.channels;
      std::fill_n(min, layout.channels, Range().min);
      std::fill_n(max, layout.channels, Range().max);
      kernels.channels_quantize_track(count, layout.channels, Grids(grids), x + offset, y + offset, min, max);
    }
    if (grids.any_passthrough()) PassThroughRows(grids, count, x + offset, y + offset);
    return;
  }
  const bool divide = layout.divides_by_scale();
  ForEachRow(layout, plan, block, [&](int64_t row, int64_t channel, int64_t offset, int64_t n) {
    const bool passthrough = grids.passthrough()[channel] != 0.0f;
    if (record.min != nullptr) {
      record.min[row] = Range().min;
      record.max[row] = Range().max;
      if (passthrough) {
        kernels.minmax(n, x + offset, record.min + row, record.max + row);
      } else {
        kernels.quantize_track(n, ChannelGrid(grids, channel), divide, x + offset, y + offset,
                               record.min + row, record.max + row);
      }
    } else if (!passthrough) {
      kernels.quantize(n, ChannelGrid(grids, channel), divide, x + offset, y + offset);
    }
    if (passthrough) std::memcpy(y + offset, x + offset, n * sizeof(float));
  });
}

void MinMaxBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const float* x,
                 RecordPartials record) {
  const RowKernels& kernels = Kernels();
  if (layout.interleaved()) {
    const BlockRows rows(plan, block);
    float* min = record.min + block * layout.channels;
    float* max = record.max + block * layout.channels;
    std::fill_n(min, layout.channels, Range().min);
    std::fill_n(max, layout.channels, Range().max);
    kernels.channels_minmax(rows.end - rows.begin, layout.channels, x + rows.begin * layout.channels, min,
                            max);
    return;
  }
  ForEachRow(layout, plan, block, [&](int64_t row, int64_t, int64_t offset, int64_t n) {
    record.min[row] = Range().min;
    record.max[row] = Range().max;
    kernels.minmax(n, x + offset, record.min + row, record.max + row);
  });
}

void FakeQuantGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                        const GridTable& grids, const float* dy, const float* x, float* dx, float* dmin,
                        float* dmax) {
  const RowKernels& kernels = Kernels();
  if (layout.interleaved()) {
    const BlockRows rows(plan, block);
    const int64_t offset = rows.begin * layout.channels;
    float* block_dmin = dmin + block * layout.channels;
    float* block_dmax = dmax + block * layout.channels;
    std::fill_n(block_dmin, layout.channels, 0.0f);
    std::fill_n(block_dmax, layout.channels, 0.0f);
    kernels.channels_gradient(rows.end - rows.begin, layout.channels, Grids(grids), dy + offset, x + offset,
                              dx + offset, block_dmin, block_dmax);
    return;
  }
  ForEachRow(layout, plan, block, [&](int64_t row, int64_t channel, int64_t offset, int64_t n) {
    dmin[row] = dmax[row] = 0.0f;
    kernels.gradient(n, grids.grad_min()[channel], grids.grad_max()[channel], dy + offset, x + offset,
                     dx + offset, dmin + row, dmax + row);
  });
}

void MergeRecords(const ChannelLayout& layout, const BlockPlan& plan, RecordPartials partials, float* min,
                  float* max) {
  std::fill_n(min, layout.channels, Range().min);
  std::fill_n(max, layout.channels, Range().max);
  // Interleaved partials are [block][channel], the others [outer][channel][piece].
  const int64_t pieces = layout.interleaved() ? 1 : plan.pieces_per_row;
  for (int64_t i = 0; i < plan.partials; ++i) {
    const int64_t channel = (i / pieces) % layout.channels;
    min[channel] = std::min(min[channel], partials.min[i]);
    max[channel] = std::max(max[channel], partials.max[i]);
  }
  for (int64_t channel = 0; channel < layout.channels; ++channel) {
    min[channel] += 0.0f;  // -0 becomes +0, so that equal records are equal bits
    max[channel] += 0.0f;
  }
}

void MergeSums(const ChannelLayout& layout, const BlockPlan& plan, const float* partials, float* sum) {
  std::fill_n(sum, layout.channels, 0.0f);
  const int64_t pieces = layout.interleaved() ? 1 : plan.pieces_per_row;
  for (int64_t i = 0; i < plan.partials; ++i) sum[(i / pieces) % layout.channels] += partials[i];
}

std::vector<const char*> AvailableInstructionSets() {
  std::vector<const char*> names;
  for (const RowKernels* kernels : AvailableKernels()) names.push_back(kernels->name);
  return names;
}

const char* InstructionSet() { return Kernels().name; }

bool SetInstructionSet(const char* name) {
  for (const RowKernels* kernels : AvailableKernels()) {
    if (std::strcmp(kernels->name, name) == 0) {
      Current().store(kernels, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace dqat::core
