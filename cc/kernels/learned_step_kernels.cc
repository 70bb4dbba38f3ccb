// Learned step size quantization on the CPU.
#include "core/learned_step.h"
#include "kernels/arguments.h"
#include "kernels/blocks.h"

namespace dqat {
namespace {

using core::BlockPlan;
using core::ChannelLayout;
using core::GridTable;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

constexpr int64_t kCostPerElement = 3;

// Checks the steps and puts their grids into the table.
Status ReadSteps(const Tensor& step, const Tensor& is_signed, const core::QuantizerSpec& spec,
                 GridTable* grids) {
  for (int64_t channel = 0; channel < grids->channels(); ++channel) {
    const float size = step.flat<float>()(channel);
    const core::LearnedStep learned(size, is_signed.flat<bool>()(channel), spec);
    if (!learned.valid()) {
      return InvalidArgument("step must be positive and finite (or 0 while it is not known), got ", size,
                             " for channel ", channel);
    }
    grids->Set(channel, learned.grid());
  }
  return tensorflow::OkStatus();
}

template <typename T>
class FakeQuantLearnedOp : public OpKernel {
 public:
  explicit FakeQuantLearnedOp(OpKernelConstruction* context)
      : OpKernel(context), granularity_(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &step = context->input(1), &is_signed = context->input(2);
    ChannelLayout layout;
    int64_t elements;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const TensorShape shape = granularity_.RangeShape(layout);
    OP_REQUIRES_OK(context, CheckStepShape(step, is_signed, shape));
    OP_REQUIRES_OK(context, ReadScalar(context->input(3), "elements", &elements));
    const BlockPlan plan(layout);
    GridTable grids(layout, plan);
    OP_REQUIRES_OK(context, ReadSteps(step, is_signed, spec_, &grids));
    Record record;
    Tensor* y = nullptr;
    if (grids.any_passthrough()) {
      OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &y));
    } else {
      OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    }
    OP_REQUIRES_OK(context, record.Allocate(context, plan, shape, 1));
    const auto* x_data = Data<T>(x);
    auto* y_data = Data<T>(y);
    ForBlocks(context, plan, kCostPerElement, [&](int64_t block, core::BlockQueue::Worker* worker) {
      const core::RecordPartials partials = record.Start(block);
      for (; block >= 0; block = worker->Next()) {
        core::FakeQuantBlock(layout, plan, block, grids, x_data, y_data, partials);
      }
    });
    record.Merge(layout, plan);
  }

 private:
  const Granularity granularity_;
  const core::QuantizerSpec spec_;
};

template <typename T>
class FakeQuantLearnedGradOp : public OpKernel {
 public:
  explicit FakeQuantLearnedGradOp(OpKernelConstruction* context)
      : OpKernel(context), granularity_(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &dy = context->input(0), &x = context->input(1);
    const Tensor &step = context->input(2), &is_signed = context->input(3);
    OP_REQUIRES_OK(context, CheckSameShape("dy and x", dy, x));
    ChannelLayout layout;
    int64_t elements;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const TensorShape shape = granularity_.RangeShape(layout);
    OP_REQUIRES_OK(context, CheckStepShape(step, is_signed, shape));
    OP_REQUIRES_OK(context, ReadScalar(context->input(4), "elements", &elements));
    const BlockPlan plan(layout);
    GridTable grids(layout, plan);
    OP_REQUIRES_OK(context, ReadSteps(step, is_signed, spec_, &grids));
    Tensor *dx = nullptr, *dstep = nullptr, partials;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0, 1}, 0, x.shape(), &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &dstep));
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT, {plan.partials}, &partials));
    const auto* dy_data = Data<T>(dy);
    const auto* x_data = Data<T>(x);
    auto* dx_data = Data<T>(dx);
    float* partial_sums = partials.flat<float>().data();
    const float levels = static_cast<float>(spec_.quant_max() - spec_.quant_min());
    ForEachBlock(context, plan, kCostPerElement, [&](int64_t block) {
      core::LearnedStepGradBlock(layout, plan, block, grids, levels, dy_data, x_data, dx_data, partial_sums);
    });
    float* sums = dstep->flat<float>().data();
    core::MergeSums(layout, plan, partial_sums, sums);
    for (int64_t channel = 0; channel < layout.channels; ++channel) {
      const core::LearnedStep learned(step.flat<float>()(channel), is_signed.flat<bool>()(channel), spec_);
      sums[channel] = learned.ScaledGradient(sums[channel], elements);
    }
  }

 private:
  const Granularity granularity_;
  const core::QuantizerSpec spec_;
};

#define DQAT_REGISTER_CPU(T)                                                                   \
  REGISTER_KERNEL_BUILDER(                                                                     \
      Name("Dqat>FakeQuantLearned").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),     \
      FakeQuantLearnedOp<T>);                                                                  \
  REGISTER_KERNEL_BUILDER(                                                                     \
      Name("Dqat>FakeQuantLearnedGrad").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
      FakeQuantLearnedGradOp<T>)
DQAT_REGISTER_CPU(float);
DQAT_REGISTER_CPU(Eigen::half);
DQAT_REGISTER_CPU(tensorflow::bfloat16);
#undef DQAT_REGISTER_CPU

}  // namespace
}  // namespace dqat
