// Which compilation of rows.cc runs: the best one that this processor has, chosen at run time.
#ifndef DQAT_CORE_INSTRUCTION_SET_H_
#define DQAT_CORE_INSTRUCTION_SET_H_

#include <vector>

#include "core/rows.h"

namespace dqat::core {

const RowKernels& Kernels();

// Instruction sets that were compiled in and that this processor has, best last: "baseline", "avx2",
// "avx512". Results of fake-quant are the same bits on each; those of products (products.h) on the last two,
// which fuse multiply and add.
std::vector<const char*> AvailableInstructionSets();
const char* InstructionSet();
// Returns false, and changes nothing, where `name` is not available. For tests and benchmarks.
bool SetInstructionSet(const char* name);

}  // namespace dqat::core

#endif  // DQAT_CORE_INSTRUCTION_SET_H_
