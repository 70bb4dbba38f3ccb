// Dqat>QuantizedLstm on the CPU.
#include "core/lstm.h"
#include "kernels/blocks.h"
#include "kernels/lstm_arguments.h"

namespace dqat {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

class QuantizedLstmOp : public OpKernel {
 public:
  explicit QuantizedLstmOp(OpKernelConstruction* context) : OpKernel(context), inputs_(context) {}

  void Compute(OpKernelContext* context) override {
    core::LstmShape shape;
    core::LstmArguments arguments;
    OP_REQUIRES_OK(context, inputs_.Read(context, 0, &shape, &arguments));
    OP_REQUIRES_OK(context, inputs_.ReadGrids(context, 0, &arguments));
    core::LstmResults results;
    OP_REQUIRES_OK(context, inputs_.AllocateResults(context, shape, &results.outputs, &results.hidden,
                                                    &results.cell, &results.gates, &results.cells));
    Tensor memory;
    OP_REQUIRES_OK(
        context, context->allocate_temp(tensorflow::DT_FLOAT, {core::LstmForwardWorkspace(shape)}, &memory));
    core::LstmForward(shape, arguments, &results, LstmInputs::Floats(&memory), TensorFlowThreads(context));
    const float records[] = {results.hidden_record.min, results.hidden_record.max, results.cell_record.min,
                             results.cell_record.max};
    for (int i = 0; i < 4; ++i) {
      Tensor* record = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(3 + i, {}, &record));
      record->scalar<float>()() = records[i];
    }
  }

 private:
  const LstmInputs inputs_;
};

class QuantizedLstmGradOp : public OpKernel {
 public:
  explicit QuantizedLstmGradOp(OpKernelConstruction* context) : OpKernel(context), inputs_(context) {}

  void Compute(OpKernelContext* context) override {
    core::LstmShape shape;
    core::LstmArguments arguments;
    OP_REQUIRES_OK(context, inputs_.Read(context, 3, &shape, &arguments));
    OP_REQUIRES_OK(context, inputs_.ReadGrids(context, 3, &arguments));
    OP_REQUIRES_OK(context, inputs_.CheckGradient(context, shape));
    // Before the memory of the gates may become the gradient's.
    const core::LstmKept kept = {LstmInputs::Floats(context->input(16)),
                                 LstmInputs::Floats(context->input(17))};
    core::LstmGradients gradients;
    Tensor without_bias, memory;
    OP_REQUIRES_OK(context, inputs_.AllocateGradients(context, shape, &gradients, &without_bias));
    OP_REQUIRES_OK(
        context, context->allocate_temp(tensorflow::DT_FLOAT, {core::LstmBackwardWorkspace(shape)}, &memory));
    core::LstmBackward(shape, arguments, LstmInputs::Floats(context->input(15)), kept,
                       {LstmInputs::Floats(context->input(0)), LstmInputs::Floats(context->input(1)),
                        LstmInputs::Floats(context->input(2))},
                       gradients, LstmInputs::Floats(&memory), TensorFlowThreads(context));
  }

 private:
  const LstmInputs inputs_;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>QuantizedLstm").Device(tensorflow::DEVICE_CPU), QuantizedLstmOp);
REGISTER_KERNEL_BUILDER(Name("Dqat>QuantizedLstmGrad").Device(tensorflow::DEVICE_CPU), QuantizedLstmGradOp);

}  // namespace
}  // namespace dqat
