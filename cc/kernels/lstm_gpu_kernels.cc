// Dqat>QuantizedLstm on the GPU; see fake_quant_gpu_kernels.cc.
#include "core/lstm_cuda.h"
#include "kernels/gpu_memory.h"
#include "kernels/lstm_arguments.h"
#include "kernels/tf_compat.h"

namespace dqat {
namespace {

using core::cuda::LstmCase;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;

Status ReadCase(OpKernelContext* context, const LstmInputs& inputs, int first, LstmCase* given) {
  TF_RETURN_IF_ERROR(inputs.Read(context, first, &given->shape, &given->arguments));
  const auto range = [&](int index, const core::QuantizerSpec& spec) -> core::cuda::Ranges {
    return {Floats(context->input(first + index)), Floats(context->input(first + index + 1)), spec};
  };
  given->hidden = range(7, inputs.hidden_spec());
  given->cell = range(9, inputs.cell_spec());
  return tensorflow::OkStatus();
}

class QuantizedLstmGpuOp : public OpKernel {
 public:
  explicit QuantizedLstmGpuOp(OpKernelConstruction* context) : OpKernel(context), inputs_(context) {}

  void Compute(OpKernelContext* context) override {
    LstmCase given;
    OP_REQUIRES_OK(context, ReadCase(context, inputs_, 0, &given));
    core::cuda::CudaLstmResults results;
    OP_REQUIRES_OK(context, inputs_.AllocateResults(context, given.shape, &results.outputs, &results.hidden,
                                                    &results.cell, &results.gates, &results.cells));
    float** const targets[] = {&results.hidden_record.first, &results.hidden_record.second,
                               &results.cell_record.first, &results.cell_record.second};
    for (int i = 0; i < 4; ++i) {
      Tensor* record = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(3 + i, {}, &record));
      *targets[i] = Floats(record);
    }
    Tensor scratch;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT,
                                                   {core::cuda::LstmForwardScratch(given.shape)}, &scratch));
    OP_REQUIRES_OK(context,
                   ToStatus(core::cuda::LstmForward(given, results, Floats(&scratch), GpuStream(context))));
  }

 private:
  const LstmInputs inputs_;
};

class QuantizedLstmGradGpuOp : public OpKernel {
 public:
  explicit QuantizedLstmGradGpuOp(OpKernelConstruction* context) : OpKernel(context), inputs_(context) {}

  void Compute(OpKernelContext* context) override {
    LstmCase given;
    OP_REQUIRES_OK(context, ReadCase(context, inputs_, 3, &given));
    OP_REQUIRES_OK(context, inputs_.CheckGradient(context, given.shape));
    // Before the memory of the gates may become the gradient's.
    const core::LstmKept kept = {Floats(context->input(16)), Floats(context->input(17))};
    core::LstmGradients gradients;
    Tensor without_bias, scratch;
    OP_REQUIRES_OK(context, inputs_.AllocateGradients(context, given.shape, &gradients, &without_bias));
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT,
                                                   {core::cuda::LstmBackwardScratch(given.shape)}, &scratch));
    OP_REQUIRES_OK(context,
                   ToStatus(core::cuda::LstmBackward(
                       given, Floats(context->input(15)), kept,
                       {Floats(context->input(0)), Floats(context->input(1)), Floats(context->input(2))},
                       gradients, Floats(&scratch), GpuStream(context))));
  }

 private:
  const LstmInputs inputs_;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>QuantizedLstm").Device(tensorflow::DEVICE_GPU), QuantizedLstmGpuOp);
REGISTER_KERNEL_BUILDER(Name("Dqat>QuantizedLstmGrad").Device(tensorflow::DEVICE_GPU),
                        QuantizedLstmGradGpuOp);

}  // namespace
}  // namespace dqat
