#include "core/gru_step.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/fake_quant.h"
#include "core/gru_rows.h"
#include "core/instruction_set.h"

namespace dqat::core {
namespace {

constexpr int64_t kLanes = kGruLanes;
constexpr int64_t kTaskRows = 4;
constexpr int64_t kUnitCost = 20;  // cycles, about

const GruRowKernels& GruKernels() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  const char* name = InstructionSet();
  if (std::strcmp(name, "avx512") == 0) return avx512::kGruRowKernels;
  if (std::strcmp(name, "avx2") == 0) return avx2::kGruRowKernels;
#endif
  return baseline::kGruRowKernels;
}

// The last units of a row, fewer than a block, with room for a whole one.
template <int kParts>
struct Tail {
  float lanes[kParts * kLanes] = {};

  void Load(const float* row, int64_t stride, int64_t count) {
    for (int part = 0; part < kParts; ++part) std::copy_n(row + part * stride, count, lanes + part * kLanes);
  }
  void Store(float* row, int64_t stride, int64_t count) const {
    for (int part = 0; part < kParts; ++part) std::copy_n(lanes + part * kLanes, count, row + part * stride);
  }
};

void Merge(const GruRecord& record, int64_t lanes, std::vector<Range>* ranges) {
  for (int point = 0; point < kGruPoints; ++point) {
    for (int64_t u = 0; u < lanes; ++u) {
      Range& range = (*ranges)[point];
      range.min = std::min(range.min, record.min[point][u]);
      range.max = std::max(range.max, record.max[point][u]);
    }
  }
}

GruRecord EmptyRecord() {
  GruRecord record;
  std::fill_n(&record.min[0][0], kGruPoints * kLanes, kInfinity);
  std::fill_n(&record.max[0][0], kGruPoints * kLanes, -kInfinity);
  return record;
}

}  // namespace

void GruStepForward(const GruStep& step, float* after, Range* records, const Parallel& parallel) {
  const GruRowKernels& kernels = GruKernels();
  const int64_t units = step.units, blocks = units / kLanes, whole = blocks * kLanes, rest = units - whole;
  const int64_t tasks = (step.batch + kTaskRows - 1) / kTaskRows;
  std::vector<std::vector<Range>> found(tasks, std::vector<Range>(kGruPoints));
  parallel.ForEach(tasks, kTaskRows * units * kUnitCost, [&](int64_t task) {
    GruRecord record = EmptyRecord(), tail_record = record;
    for (int64_t b = task * kTaskRows; b < std::min(step.batch, (task + 1) * kTaskRows); ++b) {
      const float *projected = step.projected + b * 3 * units, *product = step.product + b * 3 * units;
      const float* hidden = step.hidden + b * units;
      float* target = after + b * units;
      if (step.mask != nullptr && !step.mask[b]) {
        std::copy_n(hidden, units, target);
        continue;
      }
      kernels.forward(step.grids, blocks, units, projected, product, hidden, target, &record);
      if (rest == 0) continue;
      Tail<3> tail_projected, tail_product;
      Tail<1> tail_hidden, tail_target;
      tail_projected.Load(projected + whole, units, rest);
      tail_product.Load(product + whole, units, rest);
      tail_hidden.Load(hidden + whole, units, rest);
      kernels.forward(step.grids, 1, kLanes, tail_projected.lanes, tail_product.lanes, tail_hidden.lanes,
                      tail_target.lanes, &tail_record);
      tail_target.Store(target + whole, units, rest);
    }
    Merge(record, kLanes, &found[task]);
    Merge(tail_record, rest, &found[task]);
  });
  for (int point = 0; point < kGruPoints; ++point) {
    records[point] = Range();
    for (const std::vector<Range>& each : found) {
      records[point].min = std::min(records[point].min, each[point].min);
      records[point].max = std::max(records[point].max, each[point].max);
    }
    records[point].min += 0.0f;  // -0 becomes +0, so that equal records are equal bits
    records[point].max += 0.0f;
  }
}

void GruStepBackward(const GruStep& step, const float* slope, float* to_projected, float* to_product,
                     float* to_hidden, const Parallel& parallel) {
  const GruRowKernels& kernels = GruKernels();
  const int64_t units = step.units, blocks = units / kLanes, whole = blocks * kLanes, rest = units - whole;
  parallel.ForEach(step.batch, units * 2 * kUnitCost, [&](int64_t b) {
    const int64_t row = b * units;
    if (step.mask != nullptr && !step.mask[b]) {
      std::fill_n(to_projected + 3 * row, 3 * units, 0.0f);
      std::fill_n(to_product + 3 * row, 3 * units, 0.0f);
      std::copy_n(slope + row, units, to_hidden + row);
      return;
    }
    kernels.backward(step.grids, blocks, units, step.projected + 3 * row, step.product + 3 * row,
                     step.hidden + row, slope + row, to_projected + 3 * row, to_product + 3 * row,
                     to_hidden + row);
    if (rest == 0) return;
    Tail<3> tail_projected, tail_product, tail_to_projected, tail_to_product;
    Tail<1> tail_hidden, tail_slope, tail_to_hidden;
    tail_projected.Load(step.projected + 3 * row + whole, units, rest);
    tail_product.Load(step.product + 3 * row + whole, units, rest);
    tail_hidden.Load(step.hidden + row + whole, units, rest);
    tail_slope.Load(slope + row + whole, units, rest);
    kernels.backward(step.grids, 1, kLanes, tail_projected.lanes, tail_product.lanes, tail_hidden.lanes,
                     tail_slope.lanes, tail_to_projected.lanes, tail_to_product.lanes, tail_to_hidden.lanes);
    tail_to_projected.Store(to_projected + 3 * row + whole, units, rest);
    tail_to_product.Store(to_product + 3 * row + whole, units, rest);
    tail_to_hidden.Store(to_hidden + row + whole, units, rest);
  });
}

}  // namespace dqat::core
