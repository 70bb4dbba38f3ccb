// OpKernels on the GPU: check, allocate, call core on TensorFlow's stream. Nothing here waits for the device;
// for what becomes of an invalid range, see core/fake_quant_cuda.h.
//
// EIGEN_USE_GPU must be defined before any header of TensorFlow is included: CMakeLists.txt does.
#include "core/fake_quant_cuda.h"
#include "kernels/arguments.h"
#include "kernels/gpu_memory.h"
#include "kernels/tf_compat.h"

namespace dqat {
namespace {

using core::ChannelLayout;
using core::cuda::Record;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

template <typename T, bool kTrack>
class FakeQuantGpuOp : public OpKernel {
 public:
  explicit FakeQuantGpuOp(OpKernelConstruction* context)
      : OpKernel(context),
        granularity_(context),
        spec_(ReadSpec(context)),
        activation_(kTrack ? ReadActivation(context) : core::Activation::kLinear) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &min = context->input(1), &max = context->input(2);
    ChannelLayout layout;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const TensorShape range_shape = granularity_.RangeShape(layout);
    OP_REQUIRES_OK(context, CheckRangeShape(min, max, range_shape));
    Tensor *y = nullptr, *reach = nullptr, scratch;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    Record record;
    if (kTrack) {
      OP_REQUIRES_OK(context, AllocateRecord(context, layout, range_shape, 1, &record, &scratch));
      OP_REQUIRES_OK(context, context->allocate_output(3, ReachShape(layout), &reach));
    }
    OP_REQUIRES_OK(context, ToStatus(core::cuda::FakeQuant(
                                layout, spec_, activation_, Elements<T>(x), Floats(min), Floats(max),
                                Elements<T>(y), kTrack && !layout.per_channel ? Words(reach) : nullptr,
                                record, kTrack ? Floats(&scratch) : nullptr, GpuStream(context))));
  }

 private:
  const Granularity granularity_;
  const core::QuantizerSpec spec_;
  const core::Activation activation_;
};

template <typename T>
class FakeQuantGradGpuOp : public OpKernel {
 public:
  explicit FakeQuantGradGpuOp(OpKernelConstruction* context)
      : OpKernel(context), granularity_(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &dy = context->input(0), &x = context->input(1);
    const Tensor &min = context->input(2), &max = context->input(3);
    OP_REQUIRES_OK(context, CheckSameShape("dy and x", dy, x));
    ChannelLayout layout;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const TensorShape range_shape = granularity_.RangeShape(layout);
    OP_REQUIRES_OK(context, CheckRangeShape(min, max, range_shape));
    Tensor *dx = nullptr, *dmin = nullptr, *dmax = nullptr, scratch;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0, 1}, 0, x.shape(), &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, range_shape, &dmin));
    OP_REQUIRES_OK(context, context->allocate_output(2, range_shape, &dmax));
    OP_REQUIRES_OK(context, AllocateScratch(context, layout, &scratch));
    OP_REQUIRES_OK(context,
                   ToStatus(core::cuda::FakeQuantGrad(layout, spec_, Elements<T>(dy), Elements<T>(x),
                                                      Floats(min), Floats(max), Elements<T>(dx), Floats(dmin),
                                                      Floats(dmax), Floats(&scratch), GpuStream(context))));
  }

 private:
  const Granularity granularity_;
  const core::QuantizerSpec spec_;
};

template <typename T>
class ReachGradGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &dy = context->input(0), &reach = context->input(1);
    const ChannelLayout layout{1, 1, dy.NumElements()};
    OP_REQUIRES_OK(context, CheckReachShape(reach, layout));
    Tensor *dx = nullptr, *dmin = nullptr, *dmax = nullptr, scratch;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, dy.shape(), &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, {}, &dmin));
    OP_REQUIRES_OK(context, context->allocate_output(2, {}, &dmax));
    OP_REQUIRES_OK(context, AllocateScratch(context, layout, &scratch));
    OP_REQUIRES_OK(context, ToStatus(core::cuda::ReachGrad(layout, Elements<T>(dy), Words(reach),
                                                           Elements<T>(dx), Floats(dmin), Floats(dmax),
                                                           Floats(&scratch), GpuStream(context))));
  }
};

template <typename T>
class MinMaxGpuOp : public OpKernel {
 public:
  explicit MinMaxGpuOp(OpKernelConstruction* context) : OpKernel(context), granularity_(context) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    ChannelLayout layout;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    Record record;
    Tensor scratch;
    OP_REQUIRES_OK(context,
                   AllocateRecord(context, layout, granularity_.RangeShape(layout), 0, &record, &scratch));
    OP_REQUIRES_OK(context, ToStatus(core::cuda::MinMax(layout, Elements<T>(x), record, Floats(&scratch),
                                                        GpuStream(context))));
  }

 private:
  const Granularity granularity_;
};

class FitRangeGpuOp : public OpKernel {
 public:
  explicit FitRangeGpuOp(OpKernelConstruction* context) : OpKernel(context), spec_(ReadFitSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &min = context->input(0), &max = context->input(1);
    OP_REQUIRES_OK(context, CheckSameShape("min and max", min, max));
    Tensor *fitted_min = nullptr, *fitted_max = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, min.shape(), &fitted_min));
    OP_REQUIRES_OK(context, context->allocate_output(1, min.shape(), &fitted_max));
    OP_REQUIRES_OK(
        context, ToStatus(core::cuda::FitRange(min.NumElements(), spec_, Floats(min), Floats(max),
                                               Floats(fitted_min), Floats(fitted_max), GpuStream(context))));
  }

 private:
  const core::QuantizerSpec spec_;
};

// TensorFlow's registration is a macro, so that this must be one.
#define DQAT_REGISTER(T)                                                                                     \
  REGISTER_KERNEL_BUILDER(Name("Dqat>FakeQuant").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"),      \
                          FakeQuantGpuOp<T, false>);                                                         \
  REGISTER_KERNEL_BUILDER(Name("Dqat>FakeQuantTrack").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"), \
                          FakeQuantGpuOp<T, true>);                                                          \
  REGISTER_KERNEL_BUILDER(Name("Dqat>FakeQuantGrad").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"),  \
                          FakeQuantGradGpuOp<T>);                                                            \
  REGISTER_KERNEL_BUILDER(Name("Dqat>ReachGrad").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"),      \
                          ReachGradGpuOp<T>);                                                                \
  REGISTER_KERNEL_BUILDER(Name("Dqat>MinMax").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"),         \
                          MinMaxGpuOp<T>)
DQAT_REGISTER(float);
DQAT_REGISTER(Eigen::half);
DQAT_REGISTER(Eigen::bfloat16);
#undef DQAT_REGISTER
REGISTER_KERNEL_BUILDER(Name("Dqat>FitRange").Device(tensorflow::DEVICE_GPU), FitRangeGpuOp);

}  // namespace
}  // namespace dqat
