// Compiled once per instruction set with -DDQAT_INSTRUCTION_SET=<namespace>; see rows.cc.
#include "core/lstm_rows.h"

#include "core/element.h"

namespace dqat::core::DQAT_INSTRUCTION_SET {
namespace {

constexpr int kLanes = kUnitLanes;

void Forward(const StateGrid& cells, const StateGrid& hiddens, const float* recurrent, const float* bias,
             float* gates, int64_t stride, float* cell, float* hidden, LstmRecord* record) {
  const StateGrid cell_grid = cells, hidden_grid = hiddens;
  float *gate_i = gates, *gate_f = gates + stride, *gate_g = gates + 2 * stride, *gate_o = gates + 3 * stride;
#pragma GCC ivdep
  for (int u = 0; u < kLanes; ++u) {
    LstmGates sums;
    sums.i = (gate_i[u] + bias[u]) + recurrent[u];
    sums.f = (gate_f[u] + bias[kLanes + u]) + recurrent[kLanes + u];
    sums.g = (gate_g[u] + bias[2 * kLanes + u]) + recurrent[2 * kLanes + u];
    sums.o = (gate_o[u] + bias[3 * kLanes + u]) + recurrent[3 * kLanes + u];
    const LstmOutcome result = LstmForward(sums, cell[u], cell_grid, hidden_grid);
    gate_i[u] = result.gates.i;
    gate_f[u] = result.gates.f;
    gate_g[u] = result.gates.g;
    gate_o[u] = result.gates.o;
    cell[u] = result.cell;
    hidden[u] = result.hidden;
    const float cell_min = RecordMin(result.cell_value), cell_max = RecordMax(result.cell_value);
    const float hidden_min = RecordMin(result.hidden_value), hidden_max = RecordMax(result.hidden_value);
    record->cell_min[u] = cell_min < record->cell_min[u] ? cell_min : record->cell_min[u];
    record->cell_max[u] = cell_max > record->cell_max[u] ? cell_max : record->cell_max[u];
    record->hidden_min[u] = hidden_min < record->hidden_min[u] ? hidden_min : record->hidden_min[u];
    record->hidden_max[u] = hidden_max > record->hidden_max[u] ? hidden_max : record->hidden_max[u];
  }
}

void Backward(const StateGrid& cells, const StateGrid& hiddens, const float* gates, int64_t stride,
              const float* cell_before, const float* cell, const float* hidden_slope, float* cell_slope,
              float* sums, int64_t sums_stride) {
  const StateGrid cell_grid = cells, hidden_grid = hiddens;
#pragma GCC ivdep
  for (int u = 0; u < kLanes; ++u) {
    const LstmGates kept = {gates[u], gates[stride + u], gates[2 * stride + u], gates[3 * stride + u]};
    const LstmSlopes result =
        LstmBackward(kept, cell_before[u], cell[u], cell_slope[u], hidden_slope[u], cell_grid, hidden_grid);
    sums[u] = result.sums.i;
    sums[sums_stride + u] = result.sums.f;
    sums[2 * sums_stride + u] = result.sums.g;
    sums[3 * sums_stride + u] = result.sums.o;
    cell_slope[u] = result.cell;
  }
}

}  // namespace

const LstmRowKernels kLstmRowKernels = {Forward, Backward};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
