// Learned step size quantization (LSQ): Esser, McKinstry, Bablani, Appuswamy and Modha, "Learned Step Size
// Quantization", ICLR 2020. The step is trained with the weights.
//
// The forward pass is that of fake_quant.h on the range (step * level_min, step * level_max), whose nudged
// range is itself; so a trained step is exported like any range. The gradient to the step, with v = x / step,
// is the sum over the elements, in block order, of
//
//   dy * level_min       where v <= level_min
//   dy * level_max       where v >= level_max
//   dy * (round(v) - v)  else
//
// times 1 / sqrt(elements * level_max), and dx = dy where level_min < v < level_max, else 0.
#ifndef DQAT_CORE_LEARNED_STEP_H_
#define DQAT_CORE_LEARNED_STEP_H_

#include <cstdint>

#include "core/layout.h"
#include "core/quantization.h"

namespace dqat::core {

// A step with its levels. Signed, 0 is the middle level; unsigned, the lowest.
class LearnedStep {
 public:
  LearnedStep(float step, bool is_signed, const QuantizerSpec& spec);

  // False for a step that is negative or not finite. A step of 0 stands for "not known yet": values pass
  // through unquantized.
  bool valid() const;
  // Empty for a step of 0.
  Range range() const;
  Grid grid() const { return MakeGrid(range(), spec_); }
  float level_min() const { return level_min_; }
  float level_max() const { return level_max_; }
  // 1 / sqrt(elements * level_max): it brings the step's updates, relative to the step, to the size of the
  // weights' (section 2.2 there).
  double gradient_scale(int64_t elements) const;

 private:
  float step_, level_min_, level_max_;
  QuantizerSpec spec_;
};

// dx may be dy. dstep holds `BlockPlan::partials` partial sums, without the gradient's scale; MergeSums
// combines them. The layout is per tensor (one channel).
void LearnedStepGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                          const LearnedStep& step, const float* dy, const float* x, float* dx, float* dstep);

}  // namespace dqat::core

#endif  // DQAT_CORE_LEARNED_STEP_H_
