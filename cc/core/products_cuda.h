// Matrix products in device memory: products.h for CUDA, with the same sums; see cuda_product_work.h.
#ifndef DQAT_CORE_PRODUCTS_CUDA_H_
#define DQAT_CORE_PRODUCTS_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/product_tiles.h"

namespace dqat::core::cuda {

// results[r * columns + j] = sum over k < depth of left(r, k) * right(j, k), for r < rows and j < columns.
cudaError_t Multiply(int64_t rows, int64_t columns, int64_t depth, ProductOperand left, ProductOperand right,
                     float* results, cudaStream_t stream);

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_PRODUCTS_CUDA_H_
