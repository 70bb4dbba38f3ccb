// Fake quantization of whole tensors in device memory: fake_quant.h's functions for CUDA.
//
// Elements are float, __half or __nv_bfloat16; the arithmetic is float32, and the bits are the CPU's. Only
// the sums dmin and dmax are added up in another order (also a fixed one: the same bits in every run).
//
// Every function puts its kernels onto `stream` and returns at once with the error of the launch; nothing
// waits for the device. A range is read on the device, so an invalid one can't raise: the outputs that depend
// on it are NaN instead. An empty range passes values through.
#ifndef DQAT_CORE_FAKE_QUANT_CUDA_H_
#define DQAT_CORE_FAKE_QUANT_CUDA_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/layout.h"
#include "core/quantization.h"

namespace dqat::core::cuda {

// The record of a tensor; [channels] each. One with a NaN or an Inf is (-inf, +inf), of an empty tensor
// (+inf, -inf).
struct Record {
  float* min = nullptr;
  float* max = nullptr;
};

// Length of the `scratch` that a function below needs.
int64_t ScratchFloats(const ChannelLayout& layout);

// y may be x. Where `record` is null pointers nothing is recorded, and `scratch` isn't used. What is
// quantized and recorded is the activation of x. `reach`, null or ReachWords(layout.size()) words, per tensor
// only, is what ReachGrad needs of x.
template <typename T>
cudaError_t FakeQuant(const ChannelLayout& layout, const QuantizerSpec& spec, Activation activation,
                      const T* x, const float* min, const float* max, T* y, uint64_t* reach, Record record,
                      float* scratch, cudaStream_t stream);

template <typename T>
cudaError_t MinMax(const ChannelLayout& layout, const T* x, Record record, float* scratch,
                   cudaStream_t stream);

// dx may be dy or x.
template <typename T>
cudaError_t FakeQuantGrad(const ChannelLayout& layout, const QuantizerSpec& spec, const T* dy, const T* x,
                          const float* min, const float* max, T* dx, float* dmin, float* dmax, float* scratch,
                          cudaStream_t stream);

// Of a tensor with one range. dx may be dy.
template <typename T>
cudaError_t ReachGrad(const ChannelLayout& layout, const T* dy, const uint64_t* reach, T* dx, float* dmin,
                      float* dmax, float* scratch, cudaStream_t stream);

// Of `count` ranges.
cudaError_t FitRange(int64_t count, const QuantizerSpec& spec, const float* min, const float* max,
                     float* fitted_min, float* fitted_max, cudaStream_t stream);

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_FAKE_QUANT_CUDA_H_
