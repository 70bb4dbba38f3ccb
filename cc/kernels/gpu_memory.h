// Tensors in the GPU's memory, as core's CUDA functions take them. For files that are compiled with
// EIGEN_USE_GPU.
#ifndef DQAT_KERNELS_GPU_MEMORY_H_
#define DQAT_KERNELS_GPU_MEMORY_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "core/fake_quant_cuda.h"
#include "kernels/tf_compat.h"

namespace dqat {

// TensorFlow's element type as CUDA names it.
template <typename T>
struct CudaType {
  using Type = T;
};
template <>
struct CudaType<Eigen::half> {
  using Type = __half;
};
template <>
struct CudaType<Eigen::bfloat16> {
  using Type = __nv_bfloat16;
};

template <typename T>
const typename CudaType<T>::Type* Elements(const tensorflow::Tensor& tensor) {
  return reinterpret_cast<const typename CudaType<T>::Type*>(tensor.flat<T>().data());
}
template <typename T>
typename CudaType<T>::Type* Elements(tensorflow::Tensor* tensor) {
  return reinterpret_cast<typename CudaType<T>::Type*>(tensor->flat<T>().data());
}
inline const float* Floats(const tensorflow::Tensor& tensor) { return tensor.flat<float>().data(); }
inline float* Floats(tensorflow::Tensor* tensor) { return tensor->flat<float>().data(); }

inline tensorflow::Status ToStatus(cudaError_t error) {
  if (error == cudaSuccess) return tensorflow::OkStatus();
  return tensorflow::errors::Internal("CUDA: ", cudaGetErrorString(error));
}

inline tensorflow::Status AllocateScratch(tensorflow::OpKernelContext* context,
                                          const core::ChannelLayout& layout, tensorflow::Tensor* scratch) {
  return context->allocate_temp(tensorflow::DT_FLOAT,
                                tensorflow::TensorShape({core::cuda::ScratchFloats(layout)}), scratch);
}

// The outputs first_output and first_output + 1, a record, and the scratch memory for it.
inline tensorflow::Status AllocateRecord(tensorflow::OpKernelContext* context,
                                         const core::ChannelLayout& layout,
                                         const tensorflow::TensorShape& shape, int first_output,
                                         core::cuda::Record* record, tensorflow::Tensor* scratch) {
  tensorflow::Tensor *min = nullptr, *max = nullptr;
  TF_RETURN_IF_ERROR(context->allocate_output(first_output, shape, &min));
  TF_RETURN_IF_ERROR(context->allocate_output(first_output + 1, shape, &max));
  *record = {Floats(min), Floats(max)};
  return AllocateScratch(context, layout, scratch);
}

}  // namespace dqat

#endif  // DQAT_KERNELS_GPU_MEMORY_H_
