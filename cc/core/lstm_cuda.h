// The LSTM in device memory: lstm.h for CUDA, with the same bits as on a CPU that has fused multiply-adds;
// see cuda_lstm_work.h. Every pointer is to device memory, ranges, mask and records included.
#ifndef DQAT_CORE_LSTM_CUDA_H_
#define DQAT_CORE_LSTM_CUDA_H_

#include <cuda_runtime_api.h>

#include "core/cuda_lstm_work.h"

namespace dqat::core::cuda {

// `scratch` has LstmForwardScratch(shape) floats.
cudaError_t LstmForward(const LstmCase& given, const CudaLstmResults& results, float* scratch,
                        cudaStream_t stream);

// `outputs` and `kept` are those of the forward pass; gradients.sums may be kept.gates. `scratch` has
// LstmBackwardScratch(shape) floats.
cudaError_t LstmBackward(const LstmCase& given, const float* outputs, const LstmKept& kept,
                         const LstmOutputSlopes& slopes, const LstmGradients& gradients, float* scratch,
                         cudaStream_t stream);

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_LSTM_CUDA_H_
