// The LSTM's cell on blocks of 16 units; compiled once per instruction set like rows.h, which says why
// nothing but C headers is included.
#ifndef DQAT_CORE_LSTM_ROWS_H_
#define DQAT_CORE_LSTM_ROWS_H_

#include <stdint.h>

#include "core/lstm_element.h"

namespace dqat::core {

constexpr int kUnitLanes = 16;  // four gates of 16 units are one panel of the recurrent product
constexpr int kKeptParts = 5;   // i, f, g, o, and the cell state

// Lane by lane, the extremes of what was recorded.
struct LstmRecord {
  float cell_min[kUnitLanes], cell_max[kUnitLanes], hidden_min[kUnitLanes], hidden_max[kUnitLanes];
};

struct LstmRowKernels {
  // kept [5][16]: on entry the input's share of the four sums, on return what LstmGates says, and the new
  // cell state. recurrent and bias [4][16]; cell_before and hidden [16].
  void (*forward)(const StateGrid& cell_grid, const StateGrid& hidden_grid, const float* recurrent,
                  const float* bias, const float* cell_before, float* kept, float* hidden,
                  LstmRecord* record);
  // cell_slope [16]: on entry what arrives at the new cell state, on return at the one before. slopes
  // [4][16].
  void (*backward)(const StateGrid& cell_grid, const StateGrid& hidden_grid, const float* kept,
                   const float* cell_before, const float* hidden_slope, float* cell_slope, float* slopes);
};

namespace baseline {
extern const LstmRowKernels kLstmRowKernels;
}
#ifdef DQAT_X86_INSTRUCTION_SETS
namespace avx2 {
extern const LstmRowKernels kLstmRowKernels;
}
namespace avx512 {
extern const LstmRowKernels kLstmRowKernels;
}
#endif

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_ROWS_H_
