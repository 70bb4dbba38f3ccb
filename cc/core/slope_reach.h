// Fake quantization of a tensor with one range for a gradient that won't see the tensor: what the slope of
// each value reaches, two bits, is written down in the same pass. A training step then keeps a sixteenth of
// what x is, and y may be written over x.
#ifndef DQAT_CORE_SLOPE_REACH_H_
#define DQAT_CORE_SLOPE_REACH_H_

#include <cstdint>

#include "core/fake_quant.h"
#include "core/layout.h"

namespace dqat::core {

// FakeQuantBlock of the activation of x, tracked, that also writes ReachWords(layout.size()) words. y may be
// x unless values pass through.
template <typename T>
void FakeQuantReachBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                         const GridTable& grids, Activation activation, const T* x, T* y, uint64_t* reach,
                         RecordPartials record);

// FakeQuantGradBlock, and the gradient of the activation, from these words. dx may be dy.
template <typename T>
void ReachGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const T* dy,
                    const uint64_t* reach, T* dx, float* dmin, float* dmax);

}  // namespace dqat::core

#endif  // DQAT_CORE_SLOPE_REACH_H_
