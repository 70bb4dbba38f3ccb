// The GRU's timestep on blocks of 16 units; compiled once per instruction set like rows.h, which says why
// nothing but C headers is included.
#ifndef DQAT_CORE_GRU_ROWS_H_
#define DQAT_CORE_GRU_ROWS_H_

#include <stdint.h>

#include "core/gru_element.h"

namespace dqat::core {

constexpr int kGruLanes = 16;

// Lane by lane, the extremes of what was recorded.
struct GruRecord {
  float min[kGruPoints][kGruLanes], max[kGruPoints][kGruLanes];
};

struct GruRowKernels {
  // `blocks` times 16 units of a row. projected and product have three parts (GruParts), `stride` floats from
  // one to the next; hidden is the state before, after the one after.
  void (*forward)(const GruGrids& grids, int64_t blocks, int64_t stride, const float* projected,
                  const float* product, const float* hidden, float* after, GruRecord* record);
  // slope is what arrives at the state after; the others are gradients to what they are named for.
  void (*backward)(const GruGrids& grids, int64_t blocks, int64_t stride, const float* projected,
                   const float* product, const float* hidden, const float* slope, float* to_projected,
                   float* to_product, float* to_hidden);
};

namespace baseline {
extern const GruRowKernels kGruRowKernels;
}
#ifdef DQAT_X86_INSTRUCTION_SETS
namespace avx2 {
extern const GruRowKernels kGruRowKernels;
}
namespace avx512 {
extern const GruRowKernels kGruRowKernels;
}
#endif

}  // namespace dqat::core

#endif  // DQAT_CORE_GRU_ROWS_H_
