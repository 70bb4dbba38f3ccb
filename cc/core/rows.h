// The inner loops, one row at a time, as plain C loops that the compiler vectorises. rows.cc is
// compiled once per instruction set; fake_quant.cc chooses one table at run time.
//
// rows.cc includes nothing that defines inline functions with external linkage: the linker keeps
// one copy of such a function for the whole library, and it could be the one with AVX-512
// instructions.
#ifndef DQAT_CORE_ROWS_H_
#define DQAT_CORE_ROWS_H_

#include <stdint.h>

#include "core/element.h"
#include "core/small_floats.h"

namespace dqat::core {

// One channel's grid, or pointers to all channels' grids.
struct RowGrid {
  float nudged_min, nudged_max, scale, inv_scale, zero_level;
};
struct RowGrids {
  const float *nudged_min, *nudged_max, *scale, *inv_scale, *zero_level, *grad_min, *grad_max;
};

// Arrays to write all channels' grids to; passthrough is 1 for an empty range, else 0.
struct GridArrays {
  float *nudged_min, *nudged_max, *scale, *inv_scale, *zero_level, *grad_min, *grad_max, *passthrough;
};
// Of how many ranges there is no grid, and how many are empty.
struct GridCounts {
  int64_t invalid, empty;
};

struct RowKernels {
  const char* name;

  // MakeGrid for n ranges at once.
  GridCounts (*make_grids)(int64_t n, float quant_min, float quant_max, const float* min, const float* max,
                           const GridArrays& grids);

  // A contiguous row of one channel. `divide` chooses between division by the scale and
  // multiplication with its inverse. min and max are updated in place.
  void (*quantize)(int64_t n, const RowGrid& grid, bool divide, const float* x, float* y);
  void (*quantize_track)(int64_t n, const RowGrid& grid, bool divide, const float* x, float* y, float* min,
                         float* max);
  void (*minmax)(int64_t n, const float* x, float* min, float* max);
  void (*gradient)(int64_t n, float grad_min, float grad_max, const float* dy, const float* x, float* dx,
                   float* dmin, float* dmax);

  // `rows` rows of n channels; min, max, dmin and dmax are [n] and updated in place.
  void (*channels_quantize)(int64_t rows, int64_t n, const RowGrids& grids, const float* x, float* y);
  void (*channels_quantize_track)(int64_t rows, int64_t n, const RowGrids& grids, const float* x, float* y,
                                  float* min, float* max);
  void (*channels_minmax)(int64_t rows, int64_t n, const float* x, float* min, float* max);
  void (*channels_gradient)(int64_t rows, int64_t n, const RowGrids& grids, const float* dy, const float* x,
                            float* dx, float* dmin, float* dmax);

  // The gradient of a learned step with that many levels; *dstep and dstep[n] are updated in place.
  void (*step_gradient)(int64_t n, const RowGrid& grid, bool divide, float levels, const float* dy,
                        const float* x, float* dx, float* dstep);
  void (*channels_step_gradient)(int64_t rows, int64_t n, const RowGrids& grids, float levels,
                                 const float* dy, const float* x, float* dx, float* dstep);

  // 16-bit floats, to and from the float32 that the loops above work on.
  void (*load_half)(int64_t n, const Half* x, float* y);
  void (*load_bfloat16)(int64_t n, const BFloat16* x, float* y);
  void (*store_half)(int64_t n, const float* x, Half* y);
  void (*store_bfloat16)(int64_t n, const float* x, BFloat16* y);
  // Copies past the caches (streaming.h), where the instruction set can. finish_stream comes before other
  // threads are told that y is there.
  void (*stream)(int64_t n, const float* x, float* y);
  void (*finish_stream)();
};

namespace baseline {
extern const RowKernels kRowKernels;
}
#ifdef DQAT_X86_INSTRUCTION_SETS
namespace avx2 {
extern const RowKernels kRowKernels;
}
namespace avx512 {
extern const RowKernels kRowKernels;
}
#endif

}  // namespace dqat::core

#endif  // DQAT_CORE_ROWS_H_
