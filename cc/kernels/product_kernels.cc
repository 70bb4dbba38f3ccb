// Dqat>MatMul on the CPU.
#include "core/products.h"
#include "kernels/arguments.h"
#include "kernels/tf_compat.h"

namespace dqat {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::errors::InvalidArgument;

class MatMulOp : public OpKernel {
 public:
  explicit MatMulOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("transpose_a", &transpose_a_));
    OP_REQUIRES_OK(context, context->GetAttr("transpose_b", &transpose_b_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor &a = context->input(0), &b = context->input(1);
    OP_REQUIRES(context, a.dims() == 2 && b.dims() == 2,
                InvalidArgument("a and b must be matrices, got shapes ", a.shape().DebugString(), " and ",
                                b.shape().DebugString()));
    const int64_t rows = a.dim_size(transpose_a_ ? 1 : 0), depth = a.dim_size(transpose_a_ ? 0 : 1);
    const int64_t columns = b.dim_size(transpose_b_ ? 0 : 1);
    OP_REQUIRES(context, depth == b.dim_size(transpose_b_ ? 1 : 0),
                InvalidArgument("a and b don't fit: shapes ", a.shape().DebugString(), " and ",
                                b.shape().DebugString(), ", transpose_a ", transpose_a_, ", transpose_b ",
                                transpose_b_));
    Tensor packed, *product = nullptr;
    tensorflow::TensorShape shape;  // of empty matrices it may be larger than any memory
    OP_REQUIRES_OK(context, tensorflow::TensorShape::BuildTensorShape({rows, columns}, &shape));
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &product));
    if (product->NumElements() == 0) return;
    OP_REQUIRES_OK(context,
                   context->allocate_temp(tensorflow::DT_FLOAT, {core::PackedSize(columns, depth)}, &packed));
    const core::Parallel parallel = TensorFlowThreads(context);
    float* packed_data = packed.flat<float>().data();
    core::Pack(columns, depth, Operand(b, !transpose_b_), packed_data, parallel);
    core::Multiply(rows, columns, depth, Operand(a, transpose_a_), packed_data, product->flat<float>().data(),
                   columns, parallel);
  }

 private:
  static core::ProductOperand Operand(const Tensor& matrix, bool transposed) {
    const int64_t stride = matrix.dim_size(1);
    if (transposed) return {matrix.flat<float>().data(), 1, stride};
    return {matrix.flat<float>().data(), stride, 1};
  }

  bool transpose_a_ = false, transpose_b_ = false;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>MatMul").Device(tensorflow::DEVICE_CPU), MatMulOp);

}  // namespace
}  // namespace dqat
