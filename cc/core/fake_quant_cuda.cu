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

template <typename T>
__global__ void __launch_bounds__(Plan::kThreads)
    ReachKernel(int64_t size, const T* x, Ranges ranges, Activation activation, uint64_t* reach) {
  FindReach(int64_t{blockIdx.x} * Plan::kThreads + threadIdx.x, int64_t{gridDim.x} * Plan::kThreads, size, x,
            ranges, activation, reach);
}

}  // namespace

int64_t ScratchFloats(const ChannelLayout& layout) { return 2 * Plan(layout).num_partials; }

template <typename T>
cudaError_t FakeQuant(const ChannelLayout& layout, const QuantizerSpec& spec, Activation activation,
                      const T* x, const float* min, const float* max, T* y, uint64_t* reach, Record record,
                      float* scratch, cudaStream_t stream) {
  const Ranges ranges{min, max, spec};
  if (reach != nullptr && layout.size() > 0) {  // before y overwrites x
    const int64_t blocks = (ReachWords(layout.size()) + Plan::kThreads - 1) / Plan::kThreads;
    ReachKernel<<<GridSize(blocks), Plan::kThreads, 0, stream>>>(layout.size(), x, ranges, activation, reach);
  }
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
cudaError_t FakeQuantGrad(const ChannelLayout& layout, const QuantizerSpec& spec, const T* dy, const T* x,
                          const float* min, const float* max, T* dx, float* dmin, float* dmax, float* scratch,
                          cudaStream_t stream) {
  const FakeQuantGradWork<T> work{dy, x, {min, max, spec}, dx};
  return Launch(layout, work, Pairs{dmin, dmax}, scratch, stream);
}

template <typename T>
cudaError_t ReachGrad(const ChannelLayout& layout, const T* dy, const uint64_t* reach, T* dx, float* dmin,
                      float* dmax, float* scratch, cudaStream_t stream) {
  return Launch(layout, ReachGradWork<T>{dy, reach, dx}, Pairs{dmin, dmax}, scratch, stream);
}

cudaError_t FitRange(int64_t count, const QuantizerSpec& spec, const float* min, const float* max,
                     float* fitted_min, float* fitted_max, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const int64_t blocks = (count + Plan::kThreads - 1) / Plan::kThreads;
  FitRangeKernel<<<GridSize(blocks), Plan::kThreads, 0, stream>>>(count, {min, max, spec},
                                                                  {fitted_min, fitted_max});
  return cudaGetLastError();
}

#define DQAT_INSTANTIATE(T)                                                                                 \
  template cudaError_t FakeQuant(const ChannelLayout&, const QuantizerSpec&, Activation, const T*,          \
                                 const float*, const float*, T*, uint64_t*, Record, float*, cudaStream_t);  \
  template cudaError_t MinMax(const ChannelLayout&, const T*, Record, float*, cudaStream_t);                \
  template cudaError_t FakeQuantGrad(const ChannelLayout&, const QuantizerSpec&, const T*, const T*,        \
                                     const float*, const float*, T*, float*, float*, float*, cudaStream_t); \
  template cudaError_t ReachGrad(const ChannelLayout&, const T*, const uint64_t*, T*, float*, float*,       \
                                 float*, cudaStream_t)
DQAT_INSTANTIATE(float);
DQAT_INSTANTIATE(__half);
DQAT_INSTANTIATE(__nv_bfloat16);
#undef DQAT_INSTANTIATE

}  // namespace dqat::core::cuda
