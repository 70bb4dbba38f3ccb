// Learned step size quantization on the CPU.
#include <optional>

#include "core/learned_step.h"
#include "kernels/arguments.h"
#include "kernels/blocks.h"
#include "kernels/per_tensor.h"

namespace dqat {
namespace {

using core::BlockPlan;
using core::ChannelLayout;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::errors::InvalidArgument;

constexpr int64_t kCostPerElement = 3;

// The step that inputs `index` and `index + 1` (step and signed) describe.
Status ReadStep(OpKernelContext* context, int index, const core::QuantizerSpec& spec,
                std::optional<core::LearnedStep>* step) {
  float size;
  bool is_signed;
  TF_RETURN_IF_ERROR(ReadScalar(context->input(index), "step", &size));
  TF_RETURN_IF_ERROR(ReadScalar(context->input(index + 1), "signed", &is_signed));
  step->emplace(size, is_signed, spec);
  if (!(*step)->valid()) {
    return InvalidArgument("step must be positive and finite (or 0 while it is not known), got ", size);
  }
  return tensorflow::OkStatus();
}

class FakeQuantLearnedOp : public OpKernel {
 public:
  explicit FakeQuantLearnedOp(OpKernelConstruction* context) : OpKernel(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    std::optional<core::LearnedStep> step;
    OP_REQUIRES_OK(context, ReadStep(context, 1, spec_, &step));
    const ChannelLayout layout = per_tensor::Layout(x);
    const BlockPlan plan(layout);
    core::GridTable grids(layout, plan);
    grids.Set(0, step->grid());
    per_tensor::Record record;
    Tensor* y = nullptr;
    if (grids.any_passthrough()) {
      OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &y));
    } else {
      OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    }
    OP_REQUIRES_OK(context, record.Allocate(context, plan, 1));
    const float* x_data = x.flat<float>().data();
    float* y_data = y->flat<float>().data();
    ForBlocks(context, plan, kCostPerElement, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        core::FakeQuantBlock(layout, plan, block, grids, x_data, y_data, record.partials());
      }
    });
    record.Merge(layout, plan);
  }

 private:
  const core::QuantizerSpec spec_;
};

class FakeQuantLearnedGradOp : public OpKernel {
 public:
  explicit FakeQuantLearnedGradOp(OpKernelConstruction* context)
      : OpKernel(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& dy = context->input(0);
    const Tensor& x = context->input(1);
    OP_REQUIRES(context, dy.shape() == x.shape(),
                InvalidArgument("dy and x must have the same shape, got ", dy.shape().DebugString(), " and ",
                                x.shape().DebugString()));
    std::optional<core::LearnedStep> step;
    int64_t elements;
    OP_REQUIRES_OK(context, ReadStep(context, 2, spec_, &step));
    OP_REQUIRES_OK(context, ReadScalar(context->input(4), "elements", &elements));
    Tensor *dx = nullptr, *dstep = nullptr, memory;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0, 1}, 0, x.shape(), &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, {}, &dstep));
    const ChannelLayout layout = per_tensor::Layout(x);
    const BlockPlan plan(layout);
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT, {plan.partials}, &memory));
    const float* dy_data = dy.flat<float>().data();
    const float* x_data = x.flat<float>().data();
    float* dx_data = dx->flat<float>().data();
    float* partials = memory.flat<float>().data();
    ForBlocks(context, plan, kCostPerElement, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) {
        core::LearnedStepGradBlock(layout, plan, block, *step, dy_data, x_data, dx_data, partials);
      }
    });
    float* sum = dstep->flat<float>().data();
    core::MergeSums(layout, plan, partials, sum);
    *sum = static_cast<float>(*sum * step->gradient_scale(elements));
  }

 private:
  const core::QuantizerSpec spec_;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>FakeQuantLearned").Device(tensorflow::DEVICE_CPU), FakeQuantLearnedOp);
REGISTER_KERNEL_BUILDER(Name("Dqat>FakeQuantLearnedGrad").Device(tensorflow::DEVICE_CPU),
                        FakeQuantLearnedGradOp);

}  // namespace
}  // namespace dqat
