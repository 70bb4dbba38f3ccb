#include "core/instruction_set.h"

#include <atomic>
#include <cstring>

namespace dqat::core {
namespace {

const RowKernels* BestKernels() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
    return &avx512::kRowKernels;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &avx2::kRowKernels;
#endif
  return &baseline::kRowKernels;
}

std::vector<const RowKernels*> AvailableKernels() {
  std::vector<const RowKernels*> all = {&baseline::kRowKernels};
#ifdef DQAT_X86_INSTRUCTION_SETS
  const RowKernels* best = BestKernels();
  if (best != &baseline::kRowKernels) all.push_back(&avx2::kRowKernels);
  if (best == &avx512::kRowKernels) all.push_back(best);
#endif
  return all;
}

std::atomic<const RowKernels*>& Current() {
  static std::atomic<const RowKernels*> current{BestKernels()};
  return current;
}

}  // namespace

const RowKernels& Kernels() { return *Current().load(std::memory_order_relaxed); }

std::vector<const char*> AvailableInstructionSets() {
  std::vector<const char*> names;
  for (const RowKernels* kernels : AvailableKernels()) names.push_back(kernels->name);
  return names;
}

const char* InstructionSet() { return Kernels().name; }

bool SetInstructionSet(const char* name) {
  for (const RowKernels* kernels : AvailableKernels()) {
    if (std::strcmp(kernels->name, name) == 0) {
      Current().store(kernels, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace dqat::core
