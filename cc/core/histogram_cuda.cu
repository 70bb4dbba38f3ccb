#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/cuda_histogram_work.h"
#include "core/cuda_launch.cuh"
#include "core/histogram_cuda.h"

namespace dqat::core::cuda {
namespace {

template <typename Work>
__global__ void __launch_bounds__(Plan::kThreads)
    CountKernel(Plan plan, Work work, Pairs partials, int64_t* counts) {
  __shared__ BlockReduce::TempStorage storage;
  __shared__ uint32_t tally[kTallySize];
  DeviceBlock block(storage);
  CountBlocks(block, blockIdx.x, gridDim.x, plan, work, partials, tally, counts);
}

template <typename Work>
cudaError_t LaunchCount(const ChannelLayout& layout, const Work& work, Record record, int64_t* counts,
                        float* scratch, cudaStream_t stream) {
  const Plan plan(layout);
  const Pairs partials = Partials(plan, scratch);
  const cudaError_t cleared = cudaMemsetAsync(counts, 0, HistogramGrid::kBins * sizeof(int64_t), stream);
  if (cleared != cudaSuccess) return cleared;
  if (plan.num_blocks > 0) {
    CountKernel<<<GridSize(plan.num_blocks), Plan::kThreads, 0, stream>>>(plan, work, partials, counts);
  }
  MergeKernel<MergeRecord><<<1, Plan::kThreads, 0, stream>>>(plan, partials, Pairs{record.min, record.max});
  return cudaGetLastError();
}

// A DeviceBlock that also adds up doubles for all of its threads.
class SummingBlock : public DeviceBlock {
 public:
  using Reduction = cub::BlockReduce<double, Plan::kThreads>;
  struct Storage {
    BlockReduce::TempStorage pairs;
    Reduction::TempStorage doubles;
    double sum;
  };

  __device__ explicit SummingBlock(Storage& storage) : DeviceBlock(storage.pairs), storage_(storage) {}

  __device__ double SumForAll(PerThread<double>& shares) {
    __syncthreads();  // the storage may still be in use from the sum before
    const double sum = Reduction(storage_.doubles).Sum(shares[threadIdx.x]);
    if (threadIdx.x == 0) storage_.sum = sum;
    __syncthreads();
    return storage_.sum;
  }

 private:
  Storage& storage_;
};

__global__ void __launch_bounds__(Plan::kThreads)
    PercentileKernel(Histogram histogram, const double* lower, const double* upper, Pairs range) {
  __shared__ BlockReduce::TempStorage storage;
  __shared__ double sums[PercentileSearch::kSegments];
  DeviceBlock block(storage);
  FindPercentiles(block, histogram, lower, upper, sums, range);
}

__global__ void __launch_bounds__(Plan::kThreads)
    MinimumErrorKernel(Histogram histogram, QuantizerSpec spec, Pairs range) {
  __shared__ SummingBlock::Storage storage;
  SummingBlock block(storage);
  FindMinimumError(block, histogram, spec, range);
}

}  // namespace

template <typename T>
cudaError_t CountAndRecord(const ChannelLayout& layout, const T* x, Record record, int64_t* counts,
                           float* scratch, cudaStream_t stream) {
  return LaunchCount(layout, MinMaxWork<T>{x}, record, counts, scratch, stream);
}

template <typename T>
cudaError_t FakeQuantAndCount(const ChannelLayout& layout, const QuantizerSpec& spec, const T* x,
                              const float* min, const float* max, T* y, Record record, int64_t* counts,
                              float* scratch, cudaStream_t stream) {
  const FakeQuantWork<T, true> work{x, {min, max, spec}, layout.divides_by_scale(), y, {}};
  return LaunchCount(layout, work, record, counts, scratch, stream);
}

cudaError_t PercentileRange(const int64_t* counts, const float* min, const float* max, const double* lower,
                            const double* upper, float* range_min, float* range_max, cudaStream_t stream) {
  PercentileKernel<<<1, Plan::kThreads, 0, stream>>>({counts, min, max}, lower, upper,
                                                     {range_min, range_max});
  return cudaGetLastError();
}

cudaError_t MinimumErrorRange(const int64_t* counts, const float* min, const float* max,
                              const QuantizerSpec& spec, float* range_min, float* range_max,
                              cudaStream_t stream) {
  MinimumErrorKernel<<<1, Plan::kThreads, 0, stream>>>({counts, min, max}, spec, {range_min, range_max});
  return cudaGetLastError();
}

#define DQAT_INSTANTIATE(T)                                                                                  \
  template cudaError_t CountAndRecord(const ChannelLayout&, const T*, Record, int64_t*, float*,              \
                                      cudaStream_t);                                                         \
  template cudaError_t FakeQuantAndCount(const ChannelLayout&, const QuantizerSpec&, const T*, const float*, \
                                         const float*, T*, Record, int64_t*, float*, cudaStream_t)
DQAT_INSTANTIATE(float);
DQAT_INSTANTIATE(__half);
DQAT_INSTANTIATE(__nv_bfloat16);
#undef DQAT_INSTANTIATE

}  // namespace dqat::core::cuda
