// OpKernels on the CPU: check, allocate, shard, call core.
#include <atomic>
#include <string>
#include <utility>

#include "core/fake_quant.h"
#include "core/slope_reach.h"
#include "kernels/arguments.h"
#include "kernels/blocks.h"
#include "kernels/tf_compat.h"

namespace dqat {
namespace {

using core::BlockPlan;
using core::ChannelLayout;
using core::GridTable;
using core::RecordPartials;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

constexpr int64_t kCostPerElement = 1;

// Checks the ranges and puts their grids into the table.
Status ReadGrids(const Tensor& min, const Tensor& max, const core::QuantizerSpec& spec, GridTable* grids) {
  const float* min_data = min.flat<float>().data();
  const float* max_data = max.flat<float>().data();
  if (grids->SetAll(min_data, max_data, spec)) return tensorflow::OkStatus();
  int64_t channel = 0;
  while (core::IsValid({min_data[channel], max_data[channel]})) ++channel;
  return InvalidArgument("range must be finite with min < max (or 0 and 0), got min ", min_data[channel],
                         " and max ", max_data[channel], " for channel ", channel);
}

// Said once a process: which quantizer was the first to see values before any range.
void SayPassThroughOnce(const std::string& node) {
  static std::atomic<bool> said{false};
  if (said.exchange(true)) return;
  LOG(WARNING) << "dqat: " << node
               << " has no range yet and passes its values through unquantized. This is the first step "
                  "of training, or a model that was never trained.";
}

template <typename T, bool kTrack>
class FakeQuantOp : public OpKernel {
 public:
  explicit FakeQuantOp(OpKernelConstruction* context)
      : OpKernel(context),
        granularity_(context),
        spec_(ReadSpec(context)),
        activation_(kTrack ? ReadActivation(context) : core::Activation::kLinear) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    ChannelLayout layout;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const TensorShape range_shape = granularity_.RangeShape(layout);
    OP_REQUIRES_OK(context, CheckRangeShape(context->input(1), context->input(2), range_shape));
    const BlockPlan plan(layout);
    GridTable grids(layout, plan);
    OP_REQUIRES_OK(context, ReadGrids(context->input(1), context->input(2), spec_, &grids));
    Tensor* y = nullptr;
    if (grids.any_passthrough()) {
      SayPassThroughOnce(name());
      OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &y));
    } else {
      OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    }

    Record record;
    Tensor* reach = nullptr;
    if (kTrack) {
      OP_REQUIRES_OK(context, record.Allocate(context, plan, range_shape, 1));
      OP_REQUIRES_OK(context, context->allocate_output(3, ReachShape(layout), &reach));
    }
    const auto* x_data = Data<T>(x);
    auto* y_data = Data<T>(y);
    ForBlocks(context, plan, kCostPerElement, [&](int64_t block, core::BlockQueue::Worker* worker) {
      const RecordPartials partials = kTrack ? record.Start(block) : RecordPartials();
      for (; block >= 0; block = worker->Next()) {
        if (kTrack && !layout.per_channel) {
          core::FakeQuantReachBlock(layout, plan, block, grids, activation_, x_data, y_data, Words(reach),
                                    partials);
        } else {
          core::FakeQuantBlock(layout, plan, block, grids, x_data, y_data, partials);
        }
      }
    });
    if (kTrack) record.Merge(layout, plan);
  }

 private:
  const Granularity granularity_;
  const core::QuantizerSpec spec_;
  const core::Activation activation_;
};

template <typename T>
class FakeQuantGradOp : public OpKernel {
 public:
  explicit FakeQuantGradOp(OpKernelConstruction* context)
      : OpKernel(context), granularity_(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& dy = context->input(0);
    const Tensor& x = context->input(1);
    OP_REQUIRES_OK(context, CheckSameShape("dy and x", dy, x));
    ChannelLayout layout;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const TensorShape range_shape = granularity_.RangeShape(layout);
    OP_REQUIRES_OK(context, CheckRangeShape(context->input(2), context->input(3), range_shape));
    const BlockPlan plan(layout);
    GridTable grids(layout, plan);
    OP_REQUIRES_OK(context, ReadGrids(context->input(2), context->input(3), spec_, &grids));
    Tensor *dx = nullptr, *dmin = nullptr, *dmax = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0, 1}, 0, x.shape(), &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, range_shape, &dmin));
    OP_REQUIRES_OK(context, context->allocate_output(2, range_shape, &dmax));

    Partials partials;
    OP_REQUIRES_OK(context, partials.Allocate(context, plan));
    const auto* dy_data = Data<T>(dy);
    const auto* x_data = Data<T>(x);
    auto* dx_data = Data<T>(dx);
    ForEachBlock(context, plan, kCostPerElement, [&](int64_t block) {
      core::FakeQuantGradBlock(layout, plan, block, grids, dy_data, x_data, dx_data, partials.first(),
                               partials.second());
    });
    core::MergeSums(layout, plan, partials.first(), dmin->flat<float>().data());
    core::MergeSums(layout, plan, partials.second(), dmax->flat<float>().data());
  }

 private:
  const Granularity granularity_;
  const core::QuantizerSpec spec_;
};

template <typename T>
class ReachGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &dy = context->input(0), &reach = context->input(1);
    const ChannelLayout layout{1, 1, dy.NumElements()};
    OP_REQUIRES_OK(context, CheckReachShape(reach, layout));
    Tensor *dx = nullptr, *dmin = nullptr, *dmax = nullptr;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, dy.shape(), &dx));
    OP_REQUIRES_OK(context, context->allocate_output(1, {}, &dmin));
    OP_REQUIRES_OK(context, context->allocate_output(2, {}, &dmax));

    const BlockPlan plan(layout);
    Partials partials;
    OP_REQUIRES_OK(context, partials.Allocate(context, plan));
    const auto* dy_data = Data<T>(dy);
    auto* dx_data = Data<T>(dx);
    ForEachBlock(context, plan, kCostPerElement, [&](int64_t block) {
      core::ReachGradBlock(layout, plan, block, dy_data, Words(reach), dx_data, partials.first(),
                           partials.second());
    });
    core::MergeSums(layout, plan, partials.first(), dmin->flat<float>().data());
    core::MergeSums(layout, plan, partials.second(), dmax->flat<float>().data());
  }
};

template <typename T>
class MinMaxOp : public OpKernel {
 public:
  explicit MinMaxOp(OpKernelConstruction* context) : OpKernel(context), granularity_(context) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    ChannelLayout layout;
    OP_REQUIRES_OK(context, granularity_.Layout(x.shape(), &layout));
    const BlockPlan plan(layout);
    Record record;
    OP_REQUIRES_OK(context, record.Allocate(context, plan, granularity_.RangeShape(layout), 0));
    const auto* x_data = Data<T>(x);
    ForBlocks(context, plan, kCostPerElement, [&](int64_t block, core::BlockQueue::Worker* worker) {
      const RecordPartials partials = record.Start(block);
      for (; block >= 0; block = worker->Next()) core::MinMaxBlock(layout, plan, block, x_data, partials);
    });
    record.Merge(layout, plan);
  }

 private:
  const Granularity granularity_;
};

class FitRangeOp : public OpKernel {
 public:
  explicit FitRangeOp(OpKernelConstruction* context) : OpKernel(context), spec_(ReadFitSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& min = context->input(0);
    const Tensor& max = context->input(1);
    OP_REQUIRES_OK(context, CheckSameShape("min and max", min, max));
    Tensor *fitted_min = nullptr, *fitted_max = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, min.shape(), &fitted_min));
    OP_REQUIRES_OK(context, context->allocate_output(1, min.shape(), &fitted_max));
    const float *lows = min.flat<float>().data(), *highs = max.flat<float>().data();
    float *fitted_lows = fitted_min->flat<float>().data(), *fitted_highs = fitted_max->flat<float>().data();
    for (int64_t i = 0; i < min.NumElements(); ++i) {
      const core::Range range = core::FitRange({lows[i], highs[i]}, spec_);
      fitted_lows[i] = range.min;
      fitted_highs[i] = range.max;
    }
  }

 private:
  const core::QuantizerSpec spec_;
};

#define DQAT_REGISTER_CPU(NAME, T, ...) \
  REGISTER_KERNEL_BUILDER(Name(NAME).Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), __VA_ARGS__)
#define DQAT_REGISTER_CPU_TYPE(T)                                    \
  DQAT_REGISTER_CPU("Dqat>FakeQuant", T, FakeQuantOp<T, false>);     \
  DQAT_REGISTER_CPU("Dqat>FakeQuantTrack", T, FakeQuantOp<T, true>); \
  DQAT_REGISTER_CPU("Dqat>FakeQuantGrad", T, FakeQuantGradOp<T>);    \
  DQAT_REGISTER_CPU("Dqat>ReachGrad", T, ReachGradOp<T>);            \
  DQAT_REGISTER_CPU("Dqat>MinMax", T, MinMaxOp<T>)
DQAT_REGISTER_CPU_TYPE(float);
DQAT_REGISTER_CPU_TYPE(Eigen::half);
DQAT_REGISTER_CPU_TYPE(tensorflow::bfloat16);
#undef DQAT_REGISTER_CPU_TYPE
#undef DQAT_REGISTER_CPU
REGISTER_KERNEL_BUILDER(Name("Dqat>FitRange").Device(tensorflow::DEVICE_CPU), FitRangeOp);

}  // namespace
}  // namespace dqat
