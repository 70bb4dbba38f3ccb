// Marks a function that the CPU's compiler and the CUDA compiler both build.
#ifndef DQAT_CORE_HOST_DEVICE_H_
#define DQAT_CORE_HOST_DEVICE_H_

#ifdef __CUDACC__
#define DQAT_HOST_DEVICE __host__ __device__
#else
#define DQAT_HOST_DEVICE
#endif

#endif  // DQAT_CORE_HOST_DEVICE_H_
