// Dqat>GruStep on the CPU.
#include "core/gru_step.h"
#include "core/state_grid.h"
#include "kernels/blocks.h"
#include "kernels/gru_arguments.h"

namespace dqat {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::errors::InvalidArgument;

const float* Floats(const Tensor& tensor) { return tensor.flat<float>().data(); }
float* Floats(Tensor* tensor) { return tensor->flat<float>().data(); }

// The grids of the ranges in inputs `first` and `first` + 1.
Status ReadGrids(OpKernelContext* context, int first, const core::QuantizerSpec& spec,
                 core::GruGrids* grids) {
  for (int point = 0; point < core::kGruPoints; ++point) {
    const core::Range range = {Floats(context->input(first))[point],
                               Floats(context->input(first + 1))[point]};
    if (!core::IsValid(range)) {
      return InvalidArgument("range must be finite with min < max (or 0 and 0), got min ", range.min,
                             " and max ", range.max, " for point ", point);
    }
    grids->at[point] = core::MakeStateGrid(core::MakeGrid(range, spec));
  }
  return tensorflow::OkStatus();
}

class GruStepOp : public OpKernel {
 public:
  explicit GruStepOp(OpKernelConstruction* context) : OpKernel(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    core::GruStep step;
    OP_REQUIRES_OK(context, ReadGruStep(context, 0, &step));
    OP_REQUIRES_OK(context, ReadGrids(context, 4, spec_, &step.grids));
    Tensor *after = nullptr, *min = nullptr, *max = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, context->input(2).shape(), &after));
    OP_REQUIRES_OK(context, context->allocate_output(1, {core::kGruPoints}, &min));
    OP_REQUIRES_OK(context, context->allocate_output(2, {core::kGruPoints}, &max));
    core::Range records[core::kGruPoints];
    core::GruStepForward(step, Floats(after), records, TensorFlowThreads(context));
    for (int point = 0; point < core::kGruPoints; ++point) {
      Floats(min)[point] = records[point].min;
      Floats(max)[point] = records[point].max;
    }
  }

 private:
  const core::QuantizerSpec spec_;
};

class GruStepGradOp : public OpKernel {
 public:
  explicit GruStepGradOp(OpKernelConstruction* context) : OpKernel(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    core::GruStep step;
    OP_REQUIRES_OK(context, ReadGruStep(context, 1, &step));
    OP_REQUIRES_OK(context, ReadGrids(context, 5, spec_, &step.grids));
    const Tensor &slope = context->input(0), &hidden = context->input(3);
    OP_REQUIRES_OK(context, CheckSameShape("slope and hidden", slope, hidden));
    float* targets[3];
    for (int i = 0; i < 3; ++i) {
      Tensor* target = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(i, context->input(1 + i).shape(), &target));
      targets[i] = Floats(target);
    }
    core::GruStepBackward(step, Floats(slope), targets[0], targets[1], targets[2],
                          TensorFlowThreads(context));
  }

 private:
  const core::QuantizerSpec spec_;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>GruStep").Device(tensorflow::DEVICE_CPU), GruStepOp);
REGISTER_KERNEL_BUILDER(Name("Dqat>GruStepGrad").Device(tensorflow::DEVICE_CPU), GruStepGradOp);

}  // namespace
}  // namespace dqat
