// Rows of a tensor with one range, for a gradient that won't see the tensor: what the slope of each value
// reaches (SlopeReach) is written down in the pass that quantizes. Compiled once per instruction set like
// rows.h, which says why nothing but C headers is included.
#ifndef DQAT_CORE_REACH_ROWS_H_
#define DQAT_CORE_REACH_ROWS_H_

#include <stdint.h>

#include "core/element.h"
#include "core/rows.h"

namespace dqat::core {

// `reach` has a word for each kReachValues elements of the row; what is missing in the last one reaches
// nothing.
struct ReachRowKernels {
  // RowKernels::quantize_track of the activation of x.
  void (*quantize)(int64_t n, const RowGrid& grid, bool divide, Activation activation,
                   const SlopeBounds& bounds, const float* x, float* y, uint64_t* reach, float* min,
                   float* max);
  void (*reach)(int64_t n, const SlopeBounds& bounds, const float* x, uint64_t* reach);
  // RowKernels::gradient, with the same bits.
  void (*gradient)(int64_t n, const float* dy, const uint64_t* reach, float* dx, float* dmin, float* dmax);
};

namespace baseline {
extern const ReachRowKernels kReachRowKernels;
}
#ifdef DQAT_X86_INSTRUCTION_SETS
namespace avx2 {
extern const ReachRowKernels kReachRowKernels;
}
namespace avx512 {
extern const ReachRowKernels kReachRowKernels;
}
#endif

}  // namespace dqat::core

#endif  // DQAT_CORE_REACH_ROWS_H_
