#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/cuda_launch.cuh"
#include "core/cuda_learned_work.h"
#include "core/learned_step_cuda.h"

namespace dqat::core::cuda {

template <typename T>
cudaError_t FakeQuantLearned(const ChannelLayout& layout, const QuantizerSpec& spec, const T* x,
                             const float* step, const bool* is_signed, T* y, Record record, float* scratch,
                             cudaStream_t stream) {
  const FakeQuantWork<T, true, Steps> work{x, {step, is_signed, spec}, layout.divides_by_scale(), y, {}};
  return Launch(layout, work, Pairs{record.min, record.max}, scratch, stream);
}

template <typename T>
cudaError_t FakeQuantLearnedGrad(const ChannelLayout& layout, const QuantizerSpec& spec, const T* dy,
                                 const T* x, const float* step, const bool* is_signed,
                                 const int64_t* elements, T* dx, float* dstep, float* scratch,
                                 cudaStream_t stream) {
  const Steps steps{step, is_signed, spec};
  const LearnedGradWork<T> work{dy, x, steps, layout.divides_by_scale(), dx, {}, 0.0f};
  return Launch(layout, work, StepGradients{steps, elements, dstep}, scratch, stream);
}

#define DQAT_INSTANTIATE(T)                                                                                 \
  template cudaError_t FakeQuantLearned(const ChannelLayout&, const QuantizerSpec&, const T*, const float*, \
                                        const bool*, T*, Record, float*, cudaStream_t);                     \
  template cudaError_t FakeQuantLearnedGrad(const ChannelLayout&, const QuantizerSpec&, const T*, const T*, \
                                            const float*, const bool*, const int64_t*, T*, float*, float*,  \
                                            cudaStream_t)
DQAT_INSTANTIATE(float);
DQAT_INSTANTIATE(__half);
DQAT_INSTANTIATE(__nv_bfloat16);
#undef DQAT_INSTANTIATE

}  // namespace dqat::core::cuda
