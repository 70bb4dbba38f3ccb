// Learned step size quantization on the GPU; see fake_quant_gpu_kernels.cc.
#include "core/learned_step_cuda.h"
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

template <typename T>
class FakeQuantLearnedGpuOp : public OpKernel {
 public:
  explicit FakeQuantLearnedGpuOp(OpKernelConstruction* context)
      : OpKernel(context), granularity_(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &step = context->input(1), &is_signed = context->input(2);
    ChannelLayout layout;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const TensorShape shape = granularity_.RangeShape(layout);
    OP_REQUIRES_OK(context, CheckStepShape(step, is_signed, shape));
    Tensor *y = nullptr, scratch;
    Record record;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    OP_REQUIRES_OK(context, AllocateRecord(context, layout, shape, 1, &record, &scratch));
    OP_REQUIRES_OK(context, ToStatus(core::cuda::FakeQuantLearned(
                                layout, spec_, Elements<T>(x), Floats(step), is_signed.flat<bool>().data(),
                                Elements<T>(y), record, Floats(&scratch), GpuStream(context))));
  }

 private:
  const Granularity granularity_;
  const core::QuantizerSpec spec_;
};

template <typename T>
class FakeQuantLearnedGradGpuOp : public OpKernel {
 public:
  explicit FakeQuantLearnedGradGpuOp(OpKernelConstruction* context)
      : OpKernel(context), granularity_(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &dy = context->input(0), &x = context->input(1);
    const Tensor &step = context->input(2), &is_signed = context->input(3), &elements = context->input(4);
    OP_REQUIRES_OK(context, CheckSameShape("dy and x", dy, x));
    ChannelLayout layout;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const TensorShape shape = granularity_.RangeShape(layout);
    OP_REQUIRES_OK(context, CheckStepShape(step, is_signed, shape));
    OP_REQUIRES_OK(context, CheckScalar(elements, "elements"));
    Tensor *dx = nullptr, *dstep = nullptr, scratch;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0, 1}, 0, x.shape(), &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &dstep));
    OP_REQUIRES_OK(context, AllocateScratch(context, layout, &scratch));
    OP_REQUIRES_OK(context, ToStatus(core::cuda::FakeQuantLearnedGrad(
                                layout, spec_, Elements<T>(dy), Elements<T>(x), Floats(step),
                                is_signed.flat<bool>().data(), elements.flat<int64_t>().data(),
                                Elements<T>(dx), Floats(dstep), Floats(&scratch), GpuStream(context))));
  }

 private:
  const Granularity granularity_;
  const core::QuantizerSpec spec_;
};

#define DQAT_REGISTER(T)                                                                       \
  REGISTER_KERNEL_BUILDER(                                                                     \
      Name("Dqat>FakeQuantLearned").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"),     \
      FakeQuantLearnedGpuOp<T>);                                                               \
  REGISTER_KERNEL_BUILDER(                                                                     \
      Name("Dqat>FakeQuantLearnedGrad").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"), \
      FakeQuantLearnedGradGpuOp<T>)
DQAT_REGISTER(float);
DQAT_REGISTER(Eigen::half);
DQAT_REGISTER(Eigen::bfloat16);
#undef DQAT_REGISTER

}  // namespace
}  // namespace dqat
