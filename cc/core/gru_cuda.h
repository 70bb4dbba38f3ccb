// The GRU's timestep in device memory: gru_step.h for CUDA, with the same bits. Every pointer is to device
// memory, ranges, mask and records included.
#ifndef DQAT_CORE_GRU_CUDA_H_
#define DQAT_CORE_GRU_CUDA_H_

#include <cuda_runtime_api.h>

#include "core/cuda_gru_work.h"

namespace dqat::core::cuda {

// `scratch` has GruForwardScratch(given) floats.
cudaError_t GruStepForward(const GruCase& given, float* after, Pairs records, float* scratch,
                           cudaStream_t stream);

cudaError_t GruStepBackward(const GruCase& given, const float* slope, float* to_projected, float* to_product,
                            float* to_hidden, cudaStream_t stream);

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_GRU_CUDA_H_
