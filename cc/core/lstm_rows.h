// The LSTM's cell on blocks of 16 units; compiled once per instruction set like rows.h, which says why
// nothing but C headers is included.
#ifndef DQAT_CORE_LSTM_ROWS_H_
#define DQAT_CORE_LSTM_ROWS_H_

#include <stdint.h>

#include "core/lstm_element.h"

namespace dqat::core {

constexpr int kUnitLanes = 16;  // four gates of 16 units are one panel of the recurrent product

// Lane by lane, the extremes of what was recorded.
struct LstmRecord {
  float cell_min[kUnitLanes], cell_max[kUnitLanes], hidden_min[kUnitLanes], hidden_max[kUnitLanes];
};

// The integer kernel's functions at every 16-bit code; each points to the value at 0.
struct LstmTables {
  const float *logistic, *gate_tanh, *cell_tanh;
};

struct LstmRowKernels {
  // gates [4][16], with `stride` floats from one gate to the next: on entry the input's share of the sums, on
  // return what LstmGates says. recurrent and bias [4][16]. cell [16]: on entry the state before the
  // timestep, on return the one after. hidden [16].
  void (*forward)(const StateGrid& cell_grid, const StateGrid& hidden_grid, const float* recurrent,
                  const float* bias, float* gates, int64_t stride, float* cell, float* hidden,
                  LstmRecord* record);
  // The same with the integer kernel's roundings.
  void (*integer_forward)(const StateGrid& cell_grid, const StateGrid& hidden_grid,
                          const LstmRounding& rounding, const LstmTables& tables, const float* recurrent,
                          const float* bias, float* gates, int64_t stride, float* cell, float* hidden,
                          LstmRecord* record);
  // cell_slope [16]: on entry what arrives at the cell state after the timestep, on return at the one before.
  // sums [4][16], with a stride of its own, may be gates.
  void (*backward)(const StateGrid& cell_grid, const StateGrid& hidden_grid, const float* gates,
                   int64_t stride, const float* cell_before, const float* cell, const float* hidden_slope,
                   float* cell_slope, float* sums, int64_t sums_stride);
  void (*integer_backward)(const StateGrid& cell_grid, const StateGrid& hidden_grid,
                           const LstmRounding& rounding, const LstmTables& tables, const float* gates,
                           int64_t stride, const float* cell_before, const float* cell,
                           const float* hidden_slope, float* cell_slope, float* sums, int64_t sums_stride);
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
