// Compiled once per instruction set with -DDQAT_INSTRUCTION_SET=<namespace>; see rows.cc. The sum runs in
// kLanes lanes on every instruction set, added up in lane order: the same bits on each.
#include "core/learned_rows.h"

#include <math.h>

namespace dqat::core::DQAT_INSTRUCTION_SET {
namespace {

constexpr int kLanes = 32;

// d y / d step: the level less the value in steps inside the range, the outermost level outside. A NaN is
// neither and has no share.
inline float StepSlope(float x, const LearnedRow& grid) {
  const float level = floorf((x - grid.nudged_min) / grid.scale - grid.zero_level + 0.5f);
  const float inside = level - x / grid.scale;
  float slope = x > grid.nudged_min ? inside : 0.0f;
  slope = x <= grid.nudged_min ? grid.level_min : slope;
  return x >= grid.nudged_max ? grid.level_max : slope;
}

inline float ValueSlope(float x, const LearnedRow& grid) {
  return (x > grid.nudged_min) & (x < grid.nudged_max) ? 1.0f : 0.0f;
}

void Gradient(int64_t n, const LearnedRow& row, const float* dy, const float* x, float* dx, float* dstep) {
  const LearnedRow grid = row;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane], slope = dy[i + lane];
      sums[lane] += slope * StepSlope(value, grid);
      dx[i + lane] = slope * ValueSlope(value, grid);
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) {
    const float value = x[i], slope = dy[i];
    sums[lane] += slope * StepSlope(value, grid);
    dx[i] = slope * ValueSlope(value, grid);
  }
  float sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  *dstep += sum;
}

}  // namespace

const LearnedRowKernels kLearnedRowKernels = {Gradient};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
