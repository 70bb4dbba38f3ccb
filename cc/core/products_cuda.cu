#include "core/cuda_product_work.h"
#include "core/cuda_tasks.cuh"
#include "core/products_cuda.h"

namespace dqat::core::cuda {

cudaError_t Multiply(int64_t rows, int64_t columns, int64_t depth, ProductOperand left, ProductOperand right,
                     float* results, cudaStream_t stream) {
  const ProductWork work = {{left.data, left.row_stride, left.depth_stride, rows},
                            {right.data, right.row_stride, right.depth_stride, columns},
                            depth,
                            results};
  TaskLauncher launcher(stream);
  launcher.Run(work.Tasks(), work);
  return launcher.error();
}

}  // namespace dqat::core::cuda
