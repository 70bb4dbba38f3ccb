// Dqat>MatMul on the CPU.
#include "core/products.h"
#include "kernels/blocks.h"
#include "kernels/product_arguments.h"

namespace dqat {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

class MatMulOp : public OpKernel {
 public:
  explicit MatMulOp(OpKernelConstruction* context) : OpKernel(context), inputs_(context) {}

  void Compute(OpKernelContext* context) override {
    ProductInputs::Operands given;
    Tensor packed, *product = nullptr;
    OP_REQUIRES_OK(context, inputs_.Read(context, &given, &product));
    if (product->NumElements() == 0) return;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT,
                                                   {core::PackedSize(given.columns, given.depth)}, &packed));
    const core::Parallel parallel = TensorFlowThreads(context);
    float* packed_data = packed.flat<float>().data();
    core::Pack(given.columns, given.depth, given.b, packed_data, parallel);
    core::Multiply(given.rows, given.columns, given.depth, given.a, packed_data,
                   product->flat<float>().data(), given.columns, parallel);
  }

 private:
  const ProductInputs inputs_;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>MatMul").Device(tensorflow::DEVICE_CPU), MatMulOp);

}  // namespace
}  // namespace dqat
