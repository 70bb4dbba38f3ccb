// Histograms and the ranges that are found from them on the GPU; see fake_quant_gpu_kernels.cc.
#include "core/histogram.h"
#include "core/histogram_cuda.h"
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
using tensorflow::Status;
using tensorflow::Tensor;

using core::HistogramGrid;

ChannelLayout PerTensor(const Tensor& x) { return {1, 1, x.NumElements()}; }

Status AllocateCounts(OpKernelContext* context, int output, int64_t** counts) {
  Tensor* tensor = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output(output, {HistogramGrid::kBins}, &tensor));
  *counts = tensor->flat<int64_t>().data();
  return tensorflow::OkStatus();
}

template <typename T>
class HistogramGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const ChannelLayout layout = PerTensor(x);
    Record record;
    Tensor scratch;
    int64_t* counts;
    OP_REQUIRES_OK(context, AllocateRecord(context, layout, {}, 0, &record, &scratch));
    OP_REQUIRES_OK(context, AllocateCounts(context, 2, &counts));
    OP_REQUIRES_OK(context, ToStatus(core::cuda::CountAndRecord(layout, Elements<T>(x), record, counts,
                                                                Floats(&scratch), GpuStream(context))));
  }
};

template <typename T>
class FakeQuantHistogramGpuOp : public OpKernel {
 public:
  explicit FakeQuantHistogramGpuOp(OpKernelConstruction* context)
      : OpKernel(context), spec_(ReadSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    const Tensor &x = context->input(0), &min = context->input(1), &max = context->input(2);
    OP_REQUIRES_OK(context, CheckScalar(min, "min"));
    OP_REQUIRES_OK(context, CheckScalar(max, "max"));
    const ChannelLayout layout = PerTensor(x);
    Record record;
    Tensor *y = nullptr, scratch;
    int64_t* counts;
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    OP_REQUIRES_OK(context, AllocateRecord(context, layout, {}, 1, &record, &scratch));
    OP_REQUIRES_OK(context, AllocateCounts(context, 3, &counts));
    OP_REQUIRES_OK(context, ToStatus(core::cuda::FakeQuantAndCount(
                                layout, spec_, Elements<T>(x), Floats(min), Floats(max), Elements<T>(y),
                                record, counts, Floats(&scratch), GpuStream(context))));
  }

 private:
  const core::QuantizerSpec spec_;
};

// The shapes of counts, min and max.
Status CheckHistogram(OpKernelContext* context) {
  TF_RETURN_IF_ERROR(CheckCountsShape(context->input(0)));
  TF_RETURN_IF_ERROR(CheckScalar(context->input(1), "min"));
  return CheckScalar(context->input(2), "max");
}

Status AllocateRange(OpKernelContext* context, float** min, float** max) {
  Tensor *min_tensor = nullptr, *max_tensor = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output(0, {}, &min_tensor));
  TF_RETURN_IF_ERROR(context->allocate_output(1, {}, &max_tensor));
  *min = Floats(min_tensor);
  *max = Floats(max_tensor);
  return tensorflow::OkStatus();
}

class PercentileRangeGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor &lower = context->input(3), &upper = context->input(4);
    OP_REQUIRES_OK(context, CheckHistogram(context));
    OP_REQUIRES_OK(context, CheckScalar(lower, "lower"));
    OP_REQUIRES_OK(context, CheckScalar(upper, "upper"));
    float *min, *max;
    OP_REQUIRES_OK(context, AllocateRange(context, &min, &max));
    OP_REQUIRES_OK(context, ToStatus(core::cuda::PercentileRange(
                                context->input(0).flat<int64_t>().data(), Floats(context->input(1)),
                                Floats(context->input(2)), lower.flat<double>().data(),
                                upper.flat<double>().data(), min, max, GpuStream(context))));
  }
};

class MinimumErrorRangeGpuOp : public OpKernel {
 public:
  explicit MinimumErrorRangeGpuOp(OpKernelConstruction* context)
      : OpKernel(context), spec_(ReadFitSpec(context)) {}

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, CheckHistogram(context));
    float *min, *max;
    OP_REQUIRES_OK(context, AllocateRange(context, &min, &max));
    OP_REQUIRES_OK(context, ToStatus(core::cuda::MinimumErrorRange(
                                context->input(0).flat<int64_t>().data(), Floats(context->input(1)),
                                Floats(context->input(2)), spec_, min, max, GpuStream(context))));
  }

 private:
  const core::QuantizerSpec spec_;
};

#define DQAT_REGISTER(T)                                                                                \
  REGISTER_KERNEL_BUILDER(Name("Dqat>Histogram").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"), \
                          HistogramGpuOp<T>);                                                           \
  REGISTER_KERNEL_BUILDER(                                                                              \
      Name("Dqat>FakeQuantHistogram").Device(tensorflow::DEVICE_GPU).TypeConstraint<T>("T"),            \
      FakeQuantHistogramGpuOp<T>)
DQAT_REGISTER(float);
DQAT_REGISTER(Eigen::half);
DQAT_REGISTER(Eigen::bfloat16);
#undef DQAT_REGISTER
REGISTER_KERNEL_BUILDER(Name("Dqat>PercentileRange").Device(tensorflow::DEVICE_GPU), PercentileRangeGpuOp);
REGISTER_KERNEL_BUILDER(Name("Dqat>MinimumErrorRange").Device(tensorflow::DEVICE_GPU),
                        MinimumErrorRangeGpuOp);

}  // namespace
}  // namespace dqat
