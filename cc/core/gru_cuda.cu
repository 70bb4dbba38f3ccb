#include "core/cuda_tasks.cuh"
#include "core/gru_cuda.h"

namespace dqat::core::cuda {

cudaError_t GruStepForward(const GruCase& given, float* after, Pairs records, float* scratch,
                           cudaStream_t stream) {
  TaskLauncher launcher(stream);
  RunGruForward(given, after, records, scratch, launcher);
  return launcher.error();
}

cudaError_t GruStepBackward(const GruCase& given, const float* slope, float* to_projected, float* to_product,
                            float* to_hidden, cudaStream_t stream) {
  TaskLauncher launcher(stream);
  RunGruBackward(given, slope, to_projected, to_product, to_hidden, launcher);
  return launcher.error();
}

}  // namespace dqat::core::cuda
