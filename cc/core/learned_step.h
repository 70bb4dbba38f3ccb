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

#include <cmath>
#include <cstdint>

#include "core/fake_quant.h"
#include "core/host_device.h"
#include "core/layout.h"
#include "core/quantization.h"

namespace dqat::core {

// A step with its levels. Signed, 0 is the middle level; unsigned, the lowest. CPU and CUDA kernels compile
// it alike.
class LearnedStep {
 public:
  // A step below this counts as 0: the scale of one near the smallest normal number could be subnormal.
  static constexpr float kSmallest = 0x1p-120f;

  DQAT_HOST_DEVICE LearnedStep(float step, bool is_signed, const QuantizerSpec& spec)
      : step_(step), spec_(spec) {
    const int lowest = is_signed ? 1 << (spec.num_bits - 1) : 0;
    level_min_ = static_cast<float>(is_signed && spec.narrow_range ? 1 - lowest : -lowest);
    level_max_ = level_min_ + levels();
  }

  // False for a step that is negative or not finite. A step of 0 stands for "not known yet": values pass
  // through unquantized.
  DQAT_HOST_DEVICE bool valid() const {
    return step_ > -kSmallestNormal && std::isfinite(step_) && IsValid(range());
  }
  // Empty for a step of 0.
  DQAT_HOST_DEVICE Range range() const {
    if (step_ < kSmallest) return Range();
    return {step_ * level_min_, step_ * level_max_};
  }
  DQAT_HOST_DEVICE Grid grid() const { return MakeGrid(range(), spec_); }
  // From the lowest to the highest.
  DQAT_HOST_DEVICE float levels() const { return static_cast<float>(spec_.quant_max() - spec_.quant_min()); }
  // The gradient to the step from the sum: times 1 / sqrt(elements * level_max), which brings the step's
  // updates, relative to the step, to the size of the weights' (section 2.2 there).
  DQAT_HOST_DEVICE float ScaledGradient(float sum, int64_t elements) const {
    const double size = static_cast<double>(elements > 1 ? elements : 1) * level_max_;
    return static_cast<float>(sum * (1.0 / std::sqrt(size)));
  }

 private:
  float step_, level_min_, level_max_;
  QuantizerSpec spec_;
};

// dx may be dy or x. `levels` is that of all steps; dstep holds `BlockPlan::partials` partial sums, without
// the gradient's scale; MergeSums combines them.
template <typename T>
void LearnedStepGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                          const GridTable& grids, float levels, const T* dy, const T* x, T* dx, float* dstep);

}  // namespace dqat::core

#endif  // DQAT_CORE_LEARNED_STEP_H_
