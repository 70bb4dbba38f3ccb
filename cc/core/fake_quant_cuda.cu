#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/cuda_launch.cuh"
#include "core/fake_quant_cuda.h"

namespace dqat::core::cuda {
namespace {

__global__ void __launch_bounds__(Plan::kThreads) FitRangeKernel(int64_t count, Ranges ranges, Pairs fitted) {
  FitRanges(int64_t{blockIdx.x} * Plan::kThreads + threadIdx.x, int64_t{gridDim.x} * Plan::kThreads, count,
            ranges, fitted);
}

}  // namespace

int64_t ScratchFloats(const ChannelLayout& layout) { return 2 * Plan(layout).num_partials; }

template <typename T>
cudaError_t FakeQuant(const ChannelLayout& layout, const QuantizerSpec& spec, Activation activation,
                      const T* x, const float* min, const float* max, T* y, Record record, float* scratch,
                      cudaStream_t stream) {
  const Ranges ranges{min, max, spec};
  const Pairs results{record.min, record.max};
  if (record.min == nullptr) {
    return Launch(layout, FakeQuantWork<T, false>{x, ranges, layout.divides_by_scale(), y, {}, activation},
                  results, nullptr, stream);
  }
  return Launch(layout, FakeQuantWork<T, true>{x, ranges, layout.divides_by_scale(), y, {}, activation},
                results, scratch, stream);
}

template <typename T>
cudaError_t MinMax(const ChannelLayout& layout, const T* x, Record record, float* scratch,
                   cudaStream_t stream) {
  return Launch(layout, MinMaxWork<T>{x}, Pairs{record.min, record.max}, scratch, stream);
}

template <typename T>
cudaError_t FakeQuantGrad(const ChannelLayout& layout, const QuantizerSpec& spec, Activation activation,
                          const T* dy, const T* x, const float* min, const float* max, T* dx, float* dmin,
                          float* dmax, float* scratch, cudaStream_t stream) {
  const FakeQuantGradWork<T> work{dy, x, {min, max, spec}, dx, activation};
  return Launch(layout, work, Pairs{dmin, dmax}, scratch, stream);
}

cudaError_t FitRange(int64_t count, const QuantizerSpec& spec, const float* min, const float* max,
                     float* fitted_min, float* fitted_max, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const int64_t blocks = (count + Plan::kThreads - 1) / Plan::kThreads;
  FitRangeKernel<<<GridSize(blocks), Plan::kThreads, 0, stream>>>(count, {min, max, spec},
                                                                  {fitted_min, fitted_max});
  return cudaGetLastError();
}

#define DQAT_INSTANTIATE(T)                                                                            \
  template cudaError_t FakeQuant(const ChannelLayout&, const QuantizerSpec&, Activation, const T*,     \
                                 const float*, const float*, T*, Record, float*, cudaStream_t);        \
  template cudaError_t MinMax(const ChannelLayout&, const T*, Record, float*, cudaStream_t);           \
  template cudaError_t FakeQuantGrad(const ChannelLayout&, const QuantizerSpec&, Activation, const T*, \
                                     const T*, const float*, const float*, T*, float*, float*, float*, \
                                     cudaStream_t)
DQAT_INSTANTIATE(float);
DQAT_INSTANTIATE(__half);
DQAT_INSTANTIATE(__nv_bfloat16);
#undef DQAT_INSTANTIATE

}  // namespace dqat::core::cuda
