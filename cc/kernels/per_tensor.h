// What the kernels of one range per tensor share.
#ifndef DQAT_KERNELS_PER_TENSOR_H_
#define DQAT_KERNELS_PER_TENSOR_H_

#include "core/fake_quant.h"
#include "kernels/tf_compat.h"

namespace dqat::per_tensor {

inline core::ChannelLayout Layout(const tensorflow::Tensor& x) { return {1, 1, x.NumElements()}; }

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
