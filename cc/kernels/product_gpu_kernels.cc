// Dqat>MatMul on the GPU.
#include "core/products_cuda.h"
#include "kernels/gpu_memory.h"
#include "kernels/product_arguments.h"
#include "kernels/tf_compat.h"

namespace dqat {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;

class MatMulGpuOp : public OpKernel {
 public:
  explicit MatMulGpuOp(OpKernelConstruction* context) : OpKernel(context), inputs_(context) {}

  void Compute(OpKernelContext* context) override {
    ProductInputs::Operands given;
    Tensor* product = nullptr;
    OP_REQUIRES_OK(context, inputs_.Read(context, &given, &product));
    if (product->NumElements() == 0) return;
    OP_REQUIRES_OK(context, ToStatus(core::cuda::Multiply(given.rows, given.columns, given.depth, given.a,
                                                          given.b, Floats(product), GpuStream(context))));
  }

 private:
  const ProductInputs inputs_;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>MatMul").Device(tensorflow::DEVICE_GPU), MatMulGpuOp);

}  // namespace
}  // namespace dqat
