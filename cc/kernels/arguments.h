// What an operation is given, read and checked: attributes, shapes and scalars. For kernels of all devices.
#ifndef DQAT_KERNELS_ARGUMENTS_H_
#define DQAT_KERNELS_ARGUMENTS_H_

#include <cstdint>
#include <string>

#include "core/element.h"
#include "core/histogram.h"
#include "core/layout.h"
#include "core/quantization.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace dqat {

// The attributes that say what the range belongs to.
class Granularity {
 public:
  explicit Granularity(tensorflow::OpKernelConstruction* context) {
    OP_REQUIRES_OK(context, context->GetAttr("per_channel", &per_channel_));
    OP_REQUIRES_OK(context, context->GetAttr("axis", &axis_));
    OP_REQUIRES_OK(context, context->GetAttr("group_size", &group_size_));
  }

  tensorflow::Status Layout(const tensorflow::TensorShape& shape, core::ChannelLayout* layout) const {
    if (!per_channel_) {
      *layout = {1, 1, shape.num_elements(), false};
      return tensorflow::OkStatus();
    }
    const int axis = axis_ < 0 ? axis_ + shape.dims() : axis_;
    if (axis < 0 || axis >= shape.dims()) {
      return tensorflow::errors::InvalidArgument("axis ", axis_, " is not an axis of x with shape ",
                                                 shape.DebugString());
    }
    if (shape.dim_size(axis) % group_size_ != 0) {
      return tensorflow::errors::InvalidArgument("group_size ", group_size_, " does not divide the ",
                                                 shape.dim_size(axis), " channels on axis ", axis_,
                                                 " of x with shape ", shape.DebugString());
    }
    *layout = {1, shape.dim_size(axis) / group_size_, group_size_, true};
    for (int i = 0; i < axis; ++i) layout->outer *= shape.dim_size(i);
    for (int i = axis + 1; i < shape.dims(); ++i) layout->inner *= shape.dim_size(i);
    return tensorflow::OkStatus();
  }

  tensorflow::TensorShape RangeShape(const core::ChannelLayout& layout) const {
    return per_channel_ ? tensorflow::TensorShape({layout.channels}) : tensorflow::TensorShape({});
  }

 private:
  bool per_channel_ = false;
  int axis_ = -1;
  int group_size_ = 1;
};

inline core::QuantizerSpec ReadSpec(tensorflow::OpKernelConstruction* context) {
  core::QuantizerSpec spec;
  const auto read = [&]() -> tensorflow::Status {
    TF_RETURN_IF_ERROR(context->GetAttr("num_bits", &spec.num_bits));
    TF_RETURN_IF_ERROR(context->GetAttr("narrow_range", &spec.narrow_range));
    if (spec.num_bits < 2 || spec.num_bits > 16) {
      return tensorflow::errors::InvalidArgument("num_bits must be 2 to 16, got ", spec.num_bits);
    }
    return tensorflow::OkStatus();
  };
  const tensorflow::Status status = read();
  if (!status.ok()) context->CtxFailure(status);
  return spec;
}

// What is computed on the way to the quantizer; per tensor only.
inline core::Activation ReadActivation(tensorflow::OpKernelConstruction* context) {
  std::string name;
  bool per_channel = false;
  const auto read = [&]() -> tensorflow::Status {
    TF_RETURN_IF_ERROR(context->GetAttr("activation", &name));
    TF_RETURN_IF_ERROR(context->GetAttr("per_channel", &per_channel));
    if (per_channel && name != "linear") {
      return tensorflow::errors::InvalidArgument("activation ", name,
                                                 " needs one range for the tensor, got a ", "channel axis");
    }
    return tensorflow::OkStatus();
  };
  const tensorflow::Status status = read();
  if (!status.ok()) context->CtxFailure(status);
  if (name == "relu") return core::Activation::kRelu;
  return name == "relu6" ? core::Activation::kRelu6 : core::Activation::kLinear;
}

// With the attributes of the operations that fit ranges.
inline core::QuantizerSpec ReadFitSpec(tensorflow::OpKernelConstruction* context) {
  core::QuantizerSpec spec = ReadSpec(context);
  const auto read = [&]() -> tensorflow::Status {
    TF_RETURN_IF_ERROR(context->GetAttr("symmetric", &spec.symmetric));
    return context->GetAttr("power_of_two", &spec.power_of_two);
  };
  const tensorflow::Status status = read();
  if (!status.ok()) context->CtxFailure(status);
  return spec;
}

// Before memory is taken for as many ranges as the shape of x claims.
inline tensorflow::Status CheckRangeShape(const tensorflow::Tensor& min, const tensorflow::Tensor& max,
                                          const tensorflow::TensorShape& expected) {
  if (min.shape() == expected && max.shape() == expected) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument("min and max must have shape ", expected.DebugString(), ", got ",
                                             min.shape().DebugString(), " and ", max.shape().DebugString());
}

// The same for learned steps.
inline tensorflow::Status CheckStepShape(const tensorflow::Tensor& step, const tensorflow::Tensor& is_signed,
                                         const tensorflow::TensorShape& expected) {
  if (step.shape() == expected && is_signed.shape() == expected) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument("step and signed must have shape ", expected.DebugString(),
                                             ", got ", step.shape().DebugString(), " and ",
                                             is_signed.shape().DebugString());
}

// Of the words that FakeQuantTrack leaves for its gradient: per tensor only.
inline tensorflow::TensorShape ReachShape(const core::ChannelLayout& layout) {
  return tensorflow::TensorShape({layout.per_channel ? 0 : core::ReachWords(layout.size())});
}

inline tensorflow::Status CheckReachShape(const tensorflow::Tensor& reach,
                                          const core::ChannelLayout& layout) {
  const tensorflow::TensorShape expected = ReachShape(layout);
  if (reach.shape() == expected) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument("reach must have shape ", expected.DebugString(), ", got ",
                                             reach.shape().DebugString());
}

inline const uint64_t* Words(const tensorflow::Tensor& tensor) {
  return reinterpret_cast<const uint64_t*>(tensor.flat<int64_t>().data());
}
inline uint64_t* Words(tensorflow::Tensor* tensor) {
  return reinterpret_cast<uint64_t*>(tensor->flat<int64_t>().data());
}

// `names` of both tensors, for the message.
inline tensorflow::Status CheckSameShape(const char* names, const tensorflow::Tensor& a,
                                         const tensorflow::Tensor& b) {
  if (a.shape() == b.shape()) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument(names, " must have the same shape, got ",
                                             a.shape().DebugString(), " and ", b.shape().DebugString());
}

inline tensorflow::Status CheckScalar(const tensorflow::Tensor& tensor, const char* name) {
  if (tensor.dims() == 0) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument(name, " must be a scalar, got shape ",
                                             tensor.shape().DebugString());
}

// From host memory.
template <typename T>
tensorflow::Status ReadScalar(const tensorflow::Tensor& tensor, const char* name, T* value) {
  TF_RETURN_IF_ERROR(CheckScalar(tensor, name));
  *value = tensor.scalar<T>()();
  return tensorflow::OkStatus();
}

inline tensorflow::Status CheckCountsShape(const tensorflow::Tensor& counts) {
  if (counts.dims() == 1 && counts.NumElements() == core::HistogramGrid::kBins) return tensorflow::OkStatus();
  return tensorflow::errors::InvalidArgument("counts must have shape [", core::HistogramGrid::kBins,
                                             "], got ", counts.shape().DebugString());
}

}  // namespace dqat

#endif  // DQAT_KERNELS_ARGUMENTS_H_
