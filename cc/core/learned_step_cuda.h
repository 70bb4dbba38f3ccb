// Learned steps in device memory: learned_step.h's functions for CUDA. See fake_quant_cuda.h for the element
// types, the order of sums, and ScratchFloats. An impossible step gives outputs of NaN.
#ifndef DQAT_CORE_LEARNED_STEP_CUDA_H_
#define DQAT_CORE_LEARNED_STEP_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/fake_quant_cuda.h"

namespace dqat::core::cuda {

// y may be x. `step` and `is_signed` are [channels], in device memory.
template <typename T>
cudaError_t FakeQuantLearned(const ChannelLayout& layout, const QuantizerSpec& spec, const T* x,
                             const float* step, const bool* is_signed, T* y, Record record, float* scratch,
                             cudaStream_t stream);

// dx may be dy or x. `elements`, one number in device memory, is that of the gradient's scale.
template <typename T>
cudaError_t FakeQuantLearnedGrad(const ChannelLayout& layout, const QuantizerSpec& spec, const T* dy,
                                 const T* x, const float* step, const bool* is_signed,
                                 const int64_t* elements, T* dx, float* dstep, float* scratch,
                                 cudaStream_t stream);

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_LEARNED_STEP_CUDA_H_
