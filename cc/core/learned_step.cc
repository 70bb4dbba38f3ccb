#include "core/learned_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/fake_quant.h"
#include "core/learned_rows.h"

namespace dqat::core {
namespace {

// The kernels of the instruction set that fake_quant.h has chosen.
const LearnedRowKernels& Kernels() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  const char* name = InstructionSet();
  if (std::strcmp(name, "avx512") == 0) return avx512::kLearnedRowKernels;
  if (std::strcmp(name, "avx2") == 0) return avx2::kLearnedRowKernels;
#endif
  return baseline::kLearnedRowKernels;
}

}  // namespace

LearnedStep::LearnedStep(float step, bool is_signed, const QuantizerSpec& spec) : step_(step), spec_(spec) {
  const int lowest = is_signed ? 1 << (spec.num_bits - 1) : 0;
  level_min_ = static_cast<float>(is_signed && spec.narrow_range ? 1 - lowest : -lowest);
  level_max_ = level_min_ + static_cast<float>(spec.quant_max() - spec.quant_min());
}

bool LearnedStep::valid() const {
  return step_ >= 0.0f && std::isfinite(step_) && (step_ == 0.0f || IsValid(range()));
}

Range LearnedStep::range() const {
  if (step_ == 0.0f) return Range();
  return {step_ * level_min_, step_ * level_max_};
}

double LearnedStep::gradient_scale(int64_t elements) const {
  return 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(elements, 1)) * level_max_);
}

void LearnedStepGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                          const LearnedStep& step, const float* dy, const float* x, float* dx, float* dstep) {
  const Grid grid = step.grid();
  const LearnedRow row_grid = {grid.nudged_min, grid.nudged_max,  grid.scale,
                               grid.zero_level, step.level_min(), step.level_max()};
  const int64_t end = std::min(plan.rows, (block + 1) * plan.rows_per_block);
  for (int64_t row = block * plan.rows_per_block; row < end; ++row) {
    const int64_t offset = row * BlockPlan::kMaxRowElements;
    const int64_t n = std::min(layout.inner - offset, BlockPlan::kMaxRowElements);
    dstep[row] = 0.0f;
    if (grid.passthrough) {
      std::copy_n(dy + offset, n, dx + offset);
    } else {
      Kernels().gradient(n, row_grid, dy + offset, x + offset, dx + offset, dstep + row);
    }
  }
}

}  // namespace dqat::core
