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

// A member of the batch in one timestep.
struct LstmCell {
  const float* recurrent;  // [4][16]: the hidden state's share of the sums
  float* gates;            // [4][16]: on entry the input's share, on return what LstmGates says
  float* cell;             // [16]: on entry the state before the timestep, on return the one after
  float* hidden;           // [16]: the result
  int16_t* codes;          // [16]: its codes, see LstmRounding; or null. By the integer kernel's cell alone
};

struct LstmRowKernels {
  // `count` cells with one bias [4][16]; from a gate to the next are `stride` floats in their gates.
  void (*forward)(const StateGrid& cell_grid, const StateGrid& hidden_grid, int64_t count,
                  const LstmCell* cells, const float* bias, int64_t stride, LstmRecord* record);
  // The same with the integer kernel's roundings.
  void (*integer_forward)(const StateGrid& cell_grid, const StateGrid& hidden_grid,
                          const LstmRounding& rounding, const LstmTables& tables, int64_t count,
                          const LstmCell* cells, const float* bias, int64_t stride, LstmRecord* record);
  // cell_slope [16]: on entry what arrives at the cell state after the timestep, on return at the one before.
  // gates and sums [4][16], with strides of their own, may be the same.
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
