// Histograms in device memory: histogram.h's and histogram_range.h's functions for CUDA. See
// fake_quant_cuda.h for the element types and ScratchFloats; the layout is per tensor.
//
// Counts and percentiles have the CPU's bits. A range of minimum error is the CPU's but where two ranges have
// the same error within the rounding of a float64 sum. Wrong arguments can't raise here: they give ranges of
// NaN.
#ifndef DQAT_CORE_HISTOGRAM_CUDA_H_
#define DQAT_CORE_HISTOGRAM_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/fake_quant_cuda.h"

namespace dqat::core::cuda {

template <typename T>
cudaError_t CountAndRecord(const ChannelLayout& layout, const T* x, Record record, int64_t* counts,
                           float* scratch, cudaStream_t stream);

// y may be x.
template <typename T>
cudaError_t FakeQuantAndCount(const ChannelLayout& layout, const QuantizerSpec& spec, const T* x,
                              const float* min, const float* max, T* y, Record record, int64_t* counts,
                              float* scratch, cudaStream_t stream);

// All pointers are to device memory.
cudaError_t PercentileRange(const int64_t* counts, const float* min, const float* max, const double* lower,
                            const double* upper, float* range_min, float* range_max, cudaStream_t stream);

cudaError_t MinimumErrorRange(const int64_t* counts, const float* min, const float* max,
                              const QuantizerSpec& spec, float* range_min, float* range_max,
                              cudaStream_t stream);

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_HISTOGRAM_CUDA_H_
