// The work of cuda_product_work.h and cuda_lstm_work.h as kernels: a block takes one task after the other.
#ifndef DQAT_CORE_CUDA_TASKS_CUH_
#define DQAT_CORE_CUDA_TASKS_CUH_

#include "core/cuda_launch.cuh"

namespace dqat::core::cuda {
namespace {

template <typename Work>
__global__ void __launch_bounds__(Plan::kThreads) TaskKernel(int64_t tasks, Work work) {
  __shared__ BlockReduce::TempStorage storage;
  __shared__ typename Work::Memory memory;
  DeviceBlock block(storage);
  for (int64_t task = blockIdx.x; task < tasks; task += gridDim.x) work.Run(block, task, memory);
}

// Puts kernels and copies on a stream, up to the first error.
class TaskLauncher {
 public:
  explicit TaskLauncher(cudaStream_t stream) : stream_(stream) {}

  template <typename Work>
  void Run(int64_t tasks, const Work& work) {
    if (tasks == 0 || error_ != cudaSuccess) return;
    TaskKernel<<<GridSize(tasks), Plan::kThreads, 0, stream_>>>(tasks, work);
    error_ = cudaGetLastError();
  }
  void Copy(int64_t count, const float* source, float* target) {
    if (count == 0 || error_ != cudaSuccess) return;
    error_ = cudaMemcpyAsync(target, source, count * sizeof(float), cudaMemcpyDeviceToDevice, stream_);
  }
  void Clear(int64_t count, float* target) {
    if (count == 0 || error_ != cudaSuccess) return;
    error_ = cudaMemsetAsync(target, 0, count * sizeof(float), stream_);
  }

  cudaError_t error() const { return error_; }

 private:
  const cudaStream_t stream_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace
}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_TASKS_CUH_
