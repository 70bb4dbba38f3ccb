// The blocks of a core::BlockPlan on TensorFlow's threads.
#ifndef DQAT_KERNELS_BLOCKS_H_
#define DQAT_KERNELS_BLOCKS_H_

#include <cstdint>
#include <functional>

#include "core/layout.h"
#include "kernels/tf_compat.h"

namespace dqat {

// Calls body(begin, end) on ranges of blocks. `cost_per_element` is in rough cycles, for TensorFlow's
// sharder.
inline void ForBlocks(tensorflow::OpKernelContext* context, const core::BlockPlan& plan,
                      int64_t cost_per_element, const std::function<void(int64_t, int64_t)>& body) {
  ParallelFor(context, plan.num_blocks, plan.block_elements * cost_per_element, body);
}

inline void ForEachBlock(tensorflow::OpKernelContext* context, const core::BlockPlan& plan,
                         int64_t cost_per_element, const std::function<void(int64_t)>& body) {
  ForBlocks(context, plan, cost_per_element, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) body(block);
  });
}

}  // namespace dqat

#endif  // DQAT_KERNELS_BLOCKS_H_
