// The code of cuda_work.h as kernels: what the .cu files share.
#ifndef DQAT_CORE_CUDA_LAUNCH_CUH_
#define DQAT_CORE_CUDA_LAUNCH_CUH_

#include <algorithm>
#include <cub/block/block_reduce.cuh>

#include "core/cuda_work.h"

namespace dqat::core::cuda {
namespace {  // each .cu file has kernels of its own

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

  __device__ void Synchronize() { __syncthreads(); }

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

template <typename Merge, typename Results>
__global__ void __launch_bounds__(Plan::kThreads) MergeKernel(Plan plan, Pairs partials, Results results) {
  __shared__ BlockReduce::TempStorage storage;
  DeviceBlock block(storage);
  MergePartials<Merge>(block, blockIdx.x, gridDim.x, plan, partials, results);
}

// Blocks to launch for so many; the kernels stride over the rest.
inline unsigned GridSize(int64_t blocks) { return static_cast<unsigned>(std::min<int64_t>(blocks, 1 << 20)); }

// Where a tensor's partials stand in the scratch memory of ScratchFloats(layout).
inline Pairs Partials(const Plan& plan, float* scratch) {
  return {scratch, scratch == nullptr ? nullptr : scratch + plan.num_partials};
}

// Runs the work over the tensor, and merges what its blocks have found into `results`.
template <typename Work, typename Results>
cudaError_t Launch(const ChannelLayout& layout, const Work& work, Results results, float* scratch,
                   cudaStream_t stream) {
  const Plan plan(layout);
  const Pairs partials = Partials(plan, scratch);
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
}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_LAUNCH_CUH_
