// What differs between the TensorFlow versions that the library builds for. Nowhere else.
#ifndef DQAT_KERNELS_TF_COMPAT_H_
#define DQAT_KERNELS_TF_COMPAT_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/util/work_sharder.h"
#ifdef EIGEN_USE_GPU
#include "unsupported/Eigen/CXX11/Tensor"
#endif

namespace dqat {

// How many threads `count` units are worth, as Shard has it.
inline int64_t UsefulThreads(tensorflow::OpKernelContext* context, int64_t count, int64_t cost_per_unit) {
  constexpr int64_t kLeastCost = 10000;  // of a thread
  const int threads = std::min(context->device()->tensorflow_cpu_worker_threads()->num_threads,
                               tensorflow::GetPerThreadMaxParallelism());
  return std::max<int64_t>(1, std::min<int64_t>({threads, count, count * cost_per_unit / kLeastCost}));
}

// Runs `task` on a thread of TensorFlow's pool, some time.
inline void Schedule(tensorflow::OpKernelContext* context, std::function<void()> task) {
  context->device()->tensorflow_cpu_worker_threads()->workers->Schedule(std::move(task));
}

#ifdef EIGEN_USE_GPU
// The stream of the GPU that an OpKernel runs on.
inline cudaStream_t GpuStream(tensorflow::OpKernelContext* context) {
  return context->eigen_gpu_device().stream();
}
#endif

}  // namespace dqat

#endif  // DQAT_KERNELS_TF_COMPAT_H_
