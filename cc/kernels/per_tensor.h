// What the kernels of one range per tensor share: reading their options and inputs, walking the blocks.
#ifndef DQAT_KERNELS_PER_TENSOR_H_
#define DQAT_KERNELS_PER_TENSOR_H_

#include <cstdint>
#include <functional>

#include "core/fake_quant.h"
#include "kernels/tf_compat.h"

namespace dqat::per_tensor {

// Reads num_bits and narrow_range.
inline tensorflow::Status ReadSpec(tensorflow::OpKernelConstruction* context, core::QuantizerSpec* spec) {
  TF_RETURN_IF_ERROR(context->GetAttr("num_bits", &spec->num_bits));
  TF_RETURN_IF_ERROR(context->GetAttr("narrow_range", &spec->narrow_range));
  if (spec->num_bits < 2 || spec->num_bits > 16) {
    return tensorflow::errors::InvalidArgument("num_bits must be 2 to 16, got ", spec->num_bits);
  }
  return tensorflow::OkStatus();
}

template <typename T>
tensorflow::Status ReadScalar(const tensorflow::Tensor& tensor, const char* name, T* value) {
  if (tensor.dims() != 0) {
    return tensorflow::errors::InvalidArgument(name, " must be a scalar, got shape ",
                                               tensor.shape().DebugString());
  }
  *value = tensor.scalar<T>()();
  return tensorflow::OkStatus();
}

inline core::ChannelLayout Layout(const tensorflow::Tensor& x) { return {1, 1, x.NumElements()}; }

// Calls body(begin, end) on ranges of blocks, on TensorFlow's threads.
inline void ForBlocks(tensorflow::OpKernelContext* context, const core::BlockPlan& plan,
                      int64_t cost_per_element, const std::function<void(int64_t, int64_t)>& body) {
  ParallelFor(context, plan.num_blocks, plan.block_elements * cost_per_element, body);
}

// The record of a tensor: memory for its parts, and the two outputs that they are merged into.
class Record {
 public:
  tensorflow::Status Allocate(tensorflow::OpKernelContext* context, const core::BlockPlan& plan,
                              int first_output) {
    TF_RETURN_IF_ERROR(context->allocate_output(first_output, {}, &min_));
    TF_RETURN_IF_ERROR(context->allocate_output(first_output + 1, {}, &max_));
    TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_FLOAT, {2, plan.partials}, &memory_));
    return tensorflow::OkStatus();
  }

  core::RecordPartials partials() {
    float* first = memory_.flat<float>().data();
    return {first, first + memory_.dim_size(1)};
  }

  void Merge(const core::ChannelLayout& layout, const core::BlockPlan& plan) {
    core::MergeRecords(layout, plan, partials(), min_->flat<float>().data(), max_->flat<float>().data());
  }

 private:
  tensorflow::Tensor memory_;
  tensorflow::Tensor* min_ = nullptr;
  tensorflow::Tensor* max_ = nullptr;
};

}  // namespace dqat::per_tensor

#endif  // DQAT_KERNELS_PER_TENSOR_H_
