// What Dqat>MatMul is given, read and checked: for the kernels of all devices.
#ifndef DQAT_KERNELS_PRODUCT_ARGUMENTS_H_
#define DQAT_KERNELS_PRODUCT_ARGUMENTS_H_

#include <cstdint>

#include "core/product_tiles.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace dqat {

class ProductInputs {
 public:
  explicit ProductInputs(tensorflow::OpKernelConstruction* context) {
    OP_REQUIRES_OK(context, context->GetAttr("transpose_a", &transpose_a_));
    OP_REQUIRES_OK(context, context->GetAttr("transpose_b", &transpose_b_));
  }

  struct Operands {
    core::ProductOperand a, b;  // the rows of b are the columns of the product
    int64_t rows, columns, depth;
  };

  // Reads the matrices and allocates the product.
  tensorflow::Status Read(tensorflow::OpKernelContext* context, Operands* operands,
                          tensorflow::Tensor** product) const {
    const tensorflow::Tensor &a = context->input(0), &b = context->input(1);
    if (a.dims() != 2 || b.dims() != 2) {
      return tensorflow::errors::InvalidArgument("a and b must be matrices, got shapes ",
                                                 a.shape().DebugString(), " and ", b.shape().DebugString());
    }
    *operands = {Operand(a, transpose_a_), Operand(b, !transpose_b_), a.dim_size(transpose_a_ ? 1 : 0),
                 b.dim_size(transpose_b_ ? 0 : 1), a.dim_size(transpose_a_ ? 0 : 1)};
    if (operands->depth != b.dim_size(transpose_b_ ? 1 : 0)) {
      return tensorflow::errors::InvalidArgument("a and b don't fit: shapes ", a.shape().DebugString(),
                                                 " and ", b.shape().DebugString(), ", transpose_a ",
                                                 transpose_a_, ", transpose_b ", transpose_b_);
    }
    tensorflow::TensorShape shape;  // of empty matrices it may be larger than any memory
    TF_RETURN_IF_ERROR(
        tensorflow::TensorShape::BuildTensorShape({operands->rows, operands->columns}, &shape));
    return context->allocate_output(0, shape, product);
  }

 private:
  static core::ProductOperand Operand(const tensorflow::Tensor& matrix, bool transposed) {
    const int64_t stride = matrix.dim_size(1);
    if (transposed) return {matrix.flat<float>().data(), 1, stride};
    return {matrix.flat<float>().data(), stride, 1};
  }

  bool transpose_a_ = false, transpose_b_ = false;
};

}  // namespace dqat

#endif  // DQAT_KERNELS_PRODUCT_ARGUMENTS_H_
