// The inner loop of the learned step's gradient; compiled once per instruction set like rows.h, which says
// why nothing but C headers is included.
#ifndef DQAT_CORE_LEARNED_ROWS_H_
#define DQAT_CORE_LEARNED_ROWS_H_

#include <stdint.h>

namespace dqat::core {

struct LearnedRow {
  float nudged_min, nudged_max, scale, zero_level;
  float level_min, level_max;  // -Qn and Qp
};

struct LearnedRowKernels {
  // Adds the row's share, without the gradient's scale, to *dstep.
  void (*gradient)(int64_t n, const LearnedRow& grid, const float* dy, const float* x, float* dx,
                   float* dstep);
};

namespace baseline {
extern const LearnedRowKernels kLearnedRowKernels;
}
#ifdef DQAT_X86_INSTRUCTION_SETS
namespace avx2 {
extern const LearnedRowKernels kLearnedRowKernels;
}
namespace avx512 {
extern const LearnedRowKernels kLearnedRowKernels;
}
#endif

}  // namespace dqat::core

#endif  // DQAT_CORE_LEARNED_ROWS_H_
