#include "core/cuda_tasks.cuh"
#include "core/lstm_cuda.h"

namespace dqat::core::cuda {

cudaError_t LstmForward(const LstmCase& given, const CudaLstmResults& results, float* scratch,
                        cudaStream_t stream) {
  TaskLauncher launcher(stream);
  RunLstmForward(given, results, scratch, launcher);
  return launcher.error();
}

cudaError_t LstmBackward(const LstmCase& given, const float* outputs, const LstmKept& kept,
                         const LstmOutputSlopes& slopes, const LstmGradients& gradients, float* scratch,
                         cudaStream_t stream) {
  TaskLauncher launcher(stream);
  RunLstmBackward(given, outputs, kept, slopes, gradients, scratch, launcher);
  return launcher.error();
}

}  // namespace dqat::core::cuda
