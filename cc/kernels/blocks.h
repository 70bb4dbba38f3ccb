// What the CPU kernels share: tensors as core sees them, blocks on TensorFlow's threads, partial results.
#ifndef DQAT_KERNELS_BLOCKS_H_
#define DQAT_KERNELS_BLOCKS_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/block_queue.h"
#include "core/fake_quant.h"
#include "core/layout.h"
#include "core/parallel.h"
#include "kernels/tf_compat.h"

namespace dqat {

// Core's type for a TensorFlow element type.
template <typename T>
struct CoreType {
  using type = T;
};
template <>
struct CoreType<Eigen::half> {
  using type = core::Half;
};
template <>
struct CoreType<tensorflow::bfloat16> {
  using type = core::BFloat16;
};

template <typename T>
const typename CoreType<T>::type* Data(const tensorflow::Tensor& tensor) {
  return reinterpret_cast<const typename CoreType<T>::type*>(tensor.flat<T>().data());
}

template <typename T>
typename CoreType<T>::type* Data(tensorflow::Tensor* tensor) {
  return reinterpret_cast<typename CoreType<T>::type*>(tensor->flat<T>().data());
}

// Calls body(first, worker) on this thread and on those of TensorFlow's that are free before the work is
// done: `first` is the first block of that thread, `worker->Next()` gives it the others. Shard would wait for
// threads to wake up that a small tensor could do without.
// `cost_per_block` is in rough cycles.
inline void ForBlocks(tensorflow::OpKernelContext* context, int64_t blocks, int64_t cost_per_block,
                      const core::BlockQueue::Body& body) {
  const int64_t threads = UsefulThreads(context, blocks, cost_per_block);
  const auto queue = std::make_shared<core::BlockQueue>(blocks, threads);
  for (int64_t i = 1; i < threads; ++i) {
    // A thread that comes too late finds the queue, but not the rest of this call.
    Schedule(context, [queue, i, &body] { queue->Work(i, body); });
  }
  queue->Work(0, body);
  queue->Wait();
}

inline void ForBlocks(tensorflow::OpKernelContext* context, const core::BlockPlan& plan,
                      int64_t cost_per_element, const core::BlockQueue::Body& body) {
  ForBlocks(context, plan.num_blocks, plan.block_elements * cost_per_element, body);
}

inline void ForEachBlock(tensorflow::OpKernelContext* context, const core::BlockPlan& plan,
                         int64_t cost_per_element, const std::function<void(int64_t)>& body) {
  ForBlocks(context, plan, cost_per_element, [&](int64_t block, core::BlockQueue::Worker* worker) {
    for (; block >= 0; block = worker->Next()) body(block);
  });
}

// The same threads for core functions that divide their work themselves.
inline core::Parallel TensorFlowThreads(tensorflow::OpKernelContext* context) {
  const auto run = [context](int64_t count, int64_t cost, const std::function<void(int64_t, int64_t)>& body) {
    constexpr int64_t kLeastCost = 5000;  // of a block: what taking one costs is lost in it
    const int64_t each = std::max<int64_t>(1, kLeastCost / std::max<int64_t>(1, cost));
    const int64_t blocks = (count + each - 1) / each;
    ForBlocks(context, blocks, each * cost, [&](int64_t block, core::BlockQueue::Worker* worker) {
      for (; block >= 0; block = worker->Next()) body(block * each, std::min(count, (block + 1) * each));
    });
  };
  return {context->device()->tensorflow_cpu_worker_threads()->num_threads, run};
}

// Scratch memory for partial records or sums: two arrays of at least plan.partials floats.
class Partials {
 public:
  tensorflow::Status Allocate(tensorflow::OpKernelContext* context, const core::BlockPlan& plan) {
    return context->allocate_temp(tensorflow::DT_FLOAT, {2, core::ArrayStride(plan.partials)}, &memory_);
  }

  float* first() { return memory_.flat<float>().data(); }
  float* second() { return first() + memory_.dim_size(1); }

 private:
  tensorflow::Tensor memory_;
};

// The record of a tensor: memory for its parts, and the two outputs that they are merged into.
class Record {
 public:
  tensorflow::Status Allocate(tensorflow::OpKernelContext* context, const core::BlockPlan& plan,
                              const tensorflow::TensorShape& shape, int first_output) {
    TF_RETURN_IF_ERROR(context->allocate_output(first_output, shape, &min_));
    TF_RETURN_IF_ERROR(context->allocate_output(first_output + 1, shape, &max_));
    return memory_.Allocate(context, plan);
  }

  // Where a thread whose first block is `first` leaves the record of all of its blocks. For all threads.
  core::RecordPartials Start(int64_t first) {
    const std::lock_guard<std::mutex> lock(mutex_);
    started_.push_back(first);
    return {memory_.first(), memory_.second(), first};
  }

  void Merge(const core::ChannelLayout& layout, const core::BlockPlan& plan) {
    core::MergeRecords(layout, plan, {memory_.first(), memory_.second()}, min_->flat<float>().data(),
                       max_->flat<float>().data(), &started_);
  }

 private:
  Partials memory_;
  std::mutex mutex_;
  std::vector<int64_t> started_;
  tensorflow::Tensor* min_ = nullptr;
  tensorflow::Tensor* max_ = nullptr;
};

}  // namespace dqat

#endif  // DQAT_KERNELS_BLOCKS_H_
