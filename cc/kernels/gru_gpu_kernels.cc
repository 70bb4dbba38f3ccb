// Dqat>GruStep on the GPU; see fake_quant_gpu_kernels.cc.
#include "core/gru_cuda.h"
#include "kernels/gpu_memory.h"
#include "kernels/gru_arguments.h"
#include "kernels/tf_compat.h"

namespace dqat {
namespace {

using core::cuda::GruCase;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;

Status ReadCase(OpKernelContext* context, int first, const core::QuantizerSpec& spec, GruCase* given) {
  TF_RETURN_IF_ERROR(ReadGruStep(context, first, &given->step));
  given->ranges = {Floats(context->input(first + 4)), Floats(context->input(first + 5)), spec};
  return tensorflow::OkStatus();
}

class GruStepGpuOp : public OpKernel {
 public:
  explicit GruStepGpuOp(OpKernelConstruction* context) : OpKernel(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    GruCase given;
    OP_REQUIRES_OK(context, ReadCase(context, 0, spec_, &given));
    Tensor *after = nullptr, *min = nullptr, *max = nullptr, scratch;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(2).shape(), &after));
    OP_REQUIRES_OK(context, context->allocate_output(1, {core::kGruPoints}, &min));
    OP_REQUIRES_OK(context, context->allocate_output(2, {core::kGruPoints}, &max));
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT,
                                                   {core::cuda::GruForwardScratch(given)}, &scratch));
    OP_REQUIRES_OK(context,
                   ToStatus(core::cuda::GruStepForward(given, Floats(after), {Floats(min), Floats(max)},
                                                       Floats(&scratch), GpuStream(context))));
  }

 private:
  const core::QuantizerSpec spec_;
};

class GruStepGradGpuOp : public OpKernel {
 public:
  explicit GruStepGradGpuOp(OpKernelConstruction* context) : OpKernel(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    GruCase given;
    OP_REQUIRES_OK(context, ReadCase(context, 1, spec_, &given));
    const Tensor &slope = context->input(0), &hidden = context->input(3);
    OP_REQUIRES_OK(context, CheckSameShape("slope and hidden", slope, hidden));
    float* targets[3];
    for (int i = 0; i < 3; ++i) {
      Tensor* target = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(1 + i).shape(), &target));
      targets[i] = Floats(target);
    }
    OP_REQUIRES_OK(context, ToStatus(core::cuda::GruStepBackward(given, Floats(slope), targets[0], targets[1],
                                                                 targets[2], GpuStream(context))));
  }

 private:
  const core::QuantizerSpec spec_;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>GruStep").Device(tensorflow::DEVICE_GPU), GruStepGpuOp);
REGISTER_KERNEL_BUILDER(Name("Dqat>GruStepGrad").Device(tensorflow::DEVICE_GPU), GruStepGradGpuOp);

}  // namespace
}  // namespace dqat
