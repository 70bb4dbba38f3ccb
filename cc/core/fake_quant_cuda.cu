#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cub/block/block_reduce.cuh>

#include "core/cuda_work.h"
#include "core/fake_quant_cuda.h"

namespace dqat::core::cuda {
namespace {

using BlockReduce = cub::BlockReduce<Pair, Plan::kThreads>;

// A block's threads, seen by one of them: cuda_work.h's parameter on the device.
class DeviceBlock {
 public:
  template <typename V>
  class PerThread {
   public:
    __device__ V& operator[](int) { return mine_; }

   private:
    V mine_;
  };

  __device__ explicit DeviceBlock(BlockReduce::TempStorage& storage) : storage_(storage) {}

  template <typename Body>
  __device__ void ForEachThread(Body body) {
    body(static_cast<int>(threadIdx.x));
  }

  template <typename Merge>
  __device__ Pair Reduce(PerThread<Pair>& found, Merge merge) {
    __syncthreads();  // the storage may still be in use from the reduction before
    return BlockReduce(storage_).Reduce(found[threadIdx.x], merge);
  }

 private:
  BlockReduce::TempStorage& storage_;
};

template <typename Work>
__global__ void __launch_bounds__(Plan::kThreads) WorkKernel(Plan plan, Work work, Pairs partials) {
  __shared__ BlockReduce::TempStorage storage;
  DeviceBlock block(storage);
  RunBlocks(block, blockIdx.x, gridDim.x, plan, work, partials);
}

template <typename Merge>
__global__ void __launch_bounds__(Plan::kThreads) MergeKernel(Plan plan, Pairs partials, Pairs results) {
  __shared__ BlockReduce::TempStorage storage;
  DeviceBlock block(storage);
  MergePartials<Merge>(block, blockIdx.x, gridDim.x, plan, partials, results);
}

__global__ void __launch_bounds__(Plan::kThreads) FitRangeKernel(int64_t count, Ranges ranges, Pairs fitted) {
  FitRanges(int64_t{blockIdx.x} * Plan::kThreads + threadIdx.x, int64_t{gridDim.x} * Plan::kThreads, count,
            ranges, fitted);
}

// Blocks to launch for so many; the kernels stride over the rest.
unsigned GridSize(int64_t blocks) { return static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 20)); }

// Runs the work over the tensor, and merges what its blocks have found into `results`.
template <typename Work>
cudaError_t Launch(const ChannelLayout& layout, const Work& work, Pairs results, float* scratch,
                   cudaStream_t stream) {
  const Plan plan(layout);
  const Pairs partials{scratch, scratch == nullptr ? nullptr : scratch + plan.num_partials};
  if (plan.num_blocks > 0) {
    WorkKernel<<<GridSize(plan.num_blocks), Plan::kThreads, 0, stream>>>(plan, work, partials);
  }
  if (Work::kReduces && plan.channels > 0) {
    MergeKernel<typename Work::Merge>
        <<<GridSize(plan.channels), Plan::kThreads, 0, stream>>>(plan, partials, results);
  }
  return cudaGetLastError();
}

}  // namespace

int64_t ScratchFloats(const ChannelLayout& layout) { return 2 * Plan(layout).num_partials; }

template <typename T>
cudaError_t FakeQuant(const ChannelLayout& layout, const QuantizerSpec& spec, const T* x, const float* min,
                      const float* max, T* y, Record record, float* scratch, cudaStream_t stream) {
  const Ranges ranges{min, max, spec};
  const Pairs results{record.min, record.max};
  if (record.min == nullptr) {
    return Launch(layout, FakeQuantWork<T, false>{x, ranges, layout.divides_by_scale(), y, {}}, results,
                  nullptr, stream);
  }
  return Launch(layout, FakeQuantWork<T, true>{x, ranges, layout.divides_by_scale(), y, {}}, results, scratch,
                stream);
}

template <typename T>
cudaError_t MinMax(const ChannelLayout& layout, const T* x, Record record, float* scratch,
                   cudaStream_t stream) {
  return Launch(layout, MinMaxWork<T>{x}, {record.min, record.max}, scratch, stream);
}

template <typename T>
cudaError_t FakeQuantGrad(const ChannelLayout& layout, const QuantizerSpec& spec, const T* dy, const T* x,
                          const float* min, const float* max, T* dx, float* dmin, float* dmax, float* scratch,
                          cudaStream_t stream) {
  const FakeQuantGradWork<T> work{dy, x, {min, max, spec}, dx, 0.0f, 0.0f};
  return Launch(layout, work, {dmin, dmax}, scratch, stream);
}

cudaError_t FitRange(int64_t count, const QuantizerSpec& spec, const float* min, const float* max,
                     float* fitted_min, float* fitted_max, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const int64_t blocks = (count + Plan::kThreads - 1) / Plan::kThreads;
  FitRangeKernel<<<GridSize(blocks), Plan::kThreads, 0, stream>>>(count, {min, max, spec},
                                                                  {fitted_min, fitted_max});
  return cudaGetLastError();
}

#define DQAT_INSTANTIATE(T)                                                                          \
  template cudaError_t FakeQuant(const ChannelLayout&, const QuantizerSpec&, const T*, const float*, \
                                 const float*, T*, Record, float*, cudaStream_t);                    \
  template cudaError_t MinMax(const ChannelLayout&, const T*, Record, float*, cudaStream_t);         \
  template cudaError_t FakeQuantGrad(const ChannelLayout&, const QuantizerSpec&, const T*, const T*, \
                                     const float*, const float*, T*, float*, float*, float*, cudaStream_t)
DQAT_INSTANTIATE(float);
DQAT_INSTANTIATE(__half);
DQAT_INSTANTIATE(__nv_bfloat16);
#undef DQAT_INSTANTIATE

}  // namespace dqat::core::cuda
