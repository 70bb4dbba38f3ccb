// Histograms and the ranges that are found from them, on the CPU.
#include <mutex>
#include <vector>

#include "core/histogram.h"
#include "core/histogram_range.h"
#include "kernels/arguments.h"
#include "kernels/blocks.h"

namespace dqat {
namespace {

using core::BlockPlan;
using core::ChannelLayout;
using core::HistogramGrid;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::errors::InvalidArgument;

constexpr int64_t kCostPerElement = 6;

// Runs `visit` on each block after counting it, while it is in the cache; adds up the counts of all threads.
template <typename T, typename Visit>
void CountBlocks(OpKernelContext* context, const ChannelLayout& layout, const BlockPlan& plan, const T* x,
                 Tensor* counts, Visit visit) {
  counts->flat<int64_t>().setZero();
  int64_t* total = counts->flat<int64_t>().data();
  std::mutex mutex;
  ForBlocks(context, plan, kCostPerElement, [&](int64_t block, core::BlockQueue::Worker* worker) {
    std::vector<int64_t> own(HistogramGrid::kBins);
    for (; block >= 0; block = worker->Next()) {
      core::CountBlock(layout, plan, block, x, own.data());  // first: the visit may overwrite x
      visit(block);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (int bin = 0; bin < HistogramGrid::kBins; ++bin) total[bin] += own[bin];
  });
}

ChannelLayout PerTensor(const Tensor& x) { return {1, 1, x.NumElements()}; }

template <typename T>
class HistogramOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const ChannelLayout layout = PerTensor(x);
    const BlockPlan plan(layout);
    Record record;
    Tensor* counts = nullptr;
    OP_REQUIRES_OK(context, record.Allocate(context, plan, {}, 0));
    OP_REQUIRES_OK(context, context->allocate_output(2, {HistogramGrid::kBins}, &counts));
    const auto* x_data = Data<T>(x);
    CountBlocks(context, layout, plan, x_data, counts,
                [&](int64_t block) { core::MinMaxBlock(layout, plan, block, x_data, record.Start(block)); });
    record.Merge(layout, plan);
  }
};

template <typename T>
class FakeQuantHistogramOp : public OpKernel {
 public:
  explicit FakeQuantHistogramOp(OpKernelConstruction* context)
      : OpKernel(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    core::Range range;
    OP_REQUIRES_OK(context, ReadScalar(context->input(1), "min", &range.min));
    OP_REQUIRES_OK(context, ReadScalar(context->input(2), "max", &range.max));
    OP_REQUIRES(context, core::IsValid(range),
                InvalidArgument("range must be finite with min < max (or 0 and 0), got min ", range.min,
                                " and max ", range.max));
    const ChannelLayout layout = PerTensor(x);
    const BlockPlan plan(layout);
    core::GridTable grids(layout, plan);
    grids.Set(0, core::MakeGrid(range, spec_));
    Record record;
    Tensor *y = nullptr, *counts = nullptr;
    if (grids.any_passthrough()) {
      OP_REQUIRES_OK(context, context->allocate_output(0, x.shape(), &y));
    } else {
      OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    }
    OP_REQUIRES_OK(context, record.Allocate(context, plan, {}, 1));
    OP_REQUIRES_OK(context, context->allocate_output(3, {HistogramGrid::kBins}, &counts));
    const auto* x_data = Data<T>(x);
    auto* y_data = Data<T>(y);
    CountBlocks(context, layout, plan, x_data, counts, [&](int64_t block) {
      core::FakeQuantBlock(layout, plan, block, grids, x_data, y_data, record.Start(block));
    });
    record.Merge(layout, plan);
  }

 private:
  const core::QuantizerSpec spec_;
};

// What both kinds of range are found from.
struct Histogram {
  Status Read(OpKernelContext* context) {
    const Tensor& tensor = context->input(0);
    TF_RETURN_IF_ERROR(CheckCountsShape(tensor));
    counts = tensor.flat<int64_t>().data();
    for (int bin = 0; bin < HistogramGrid::kBins; ++bin) {
      if (counts[bin] < 0) return InvalidArgument("counts must not be negative, got ", counts[bin]);
    }
    TF_RETURN_IF_ERROR(ReadScalar(context->input(1), "min", &extremes.min));
    TF_RETURN_IF_ERROR(ReadScalar(context->input(2), "max", &extremes.max));
    const bool contains_zero = extremes.min <= 0.0f && extremes.max >= 0.0f;
    if (!core::IsValid(extremes) || !(contains_zero || extremes.empty())) {
      return InvalidArgument("min and max must be finite and contain 0, got ", extremes.min, " and ",
                             extremes.max);
    }
    return tensorflow::OkStatus();
  }

  const int64_t* counts = nullptr;
  core::Range extremes;
};

Status WriteRange(OpKernelContext* context, const core::Range& range) {
  Tensor *min = nullptr, *max = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output(0, {}, &min));
  TF_RETURN_IF_ERROR(context->allocate_output(1, {}, &max));
  min->scalar<float>()() = range.min;
  max->scalar<float>()() = range.max;
  return tensorflow::OkStatus();
}

class PercentileRangeOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Histogram histogram;
    double lower, upper;
    OP_REQUIRES_OK(context, histogram.Read(context));
    OP_REQUIRES_OK(context, ReadScalar(context->input(3), "lower", &lower));
    OP_REQUIRES_OK(context, ReadScalar(context->input(4), "upper", &upper));
    OP_REQUIRES(context, lower >= 0.0 && lower < 50.0 && upper > 50.0 && upper <= 100.0,
                InvalidArgument("percentiles must be 0 <= lower < 50 < upper <= 100, got lower ", lower,
                                " and upper ", upper));
    OP_REQUIRES_OK(context, WriteRange(context, core::PercentileRange(histogram.counts, histogram.extremes,
                                                                      lower, upper)));
  }
};

class MinimumErrorRangeOp : public OpKernel {
 public:
  explicit MinimumErrorRangeOp(OpKernelConstruction* context)
      : OpKernel(context), spec_(ReadFitSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    Histogram histogram;
    OP_REQUIRES_OK(context, histogram.Read(context));
    OP_REQUIRES_OK(context,
                   WriteRange(context, core::MinimumErrorRange(histogram.counts, histogram.extremes, spec_)));
  }

 private:
  const core::QuantizerSpec spec_;
};

#define DQAT_REGISTER_CPU(T)                                                                            \
  REGISTER_KERNEL_BUILDER(Name("Dqat>Histogram").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"), \
                          HistogramOp<T>);                                                              \
  REGISTER_KERNEL_BUILDER(                                                                              \
      Name("Dqat>FakeQuantHistogram").Device(tensorflow::DEVICE_CPU).TypeConstraint<T>("T"),            \
      FakeQuantHistogramOp<T>)
DQAT_REGISTER_CPU(float);
DQAT_REGISTER_CPU(Eigen::half);
DQAT_REGISTER_CPU(tensorflow::bfloat16);
#undef DQAT_REGISTER_CPU
REGISTER_KERNEL_BUILDER(Name("Dqat>PercentileRange").Device(tensorflow::DEVICE_CPU), PercentileRangeOp);
REGISTER_KERNEL_BUILDER(Name("Dqat>MinimumErrorRange").Device(tensorflow::DEVICE_CPU), MinimumErrorRangeOp);

}  // namespace
}  // namespace dqat
