// Compiled once per instruction set with -DDQAT_INSTRUCTION_SET=<namespace>; see rows.cc.
#include "core/lstm_rows.h"

#include "core/element.h"

namespace dqat::core::DQAT_INSTRUCTION_SET {
namespace {

constexpr int kLanes = kUnitLanes;

void Forward(const StateGrid& cells, const StateGrid& hiddens, const float* recurrent, const float* bias,
             const float* cell_before, float* kept, float* hidden, LstmRecord* record) {
  const StateGrid cell_grid = cells, hidden_grid = hiddens;
#pragma GCC ivdep
  for (int u = 0; u < kLanes; ++u) {
    LstmGates sums;
    sums.i = (kept[u] + bias[u]) + recurrent[u];
    sums.f = (kept[kLanes + u] + bias[kLanes + u]) + recurrent[kLanes + u];
    sums.g = (kept[2 * kLanes + u] + bias[2 * kLanes + u]) + recurrent[2 * kLanes + u];
    sums.o = (kept[3 * kLanes + u] + bias[3 * kLanes + u]) + recurrent[3 * kLanes + u];
    const LstmOutcome result = LstmForward(sums, cell_before[u], cell_grid, hidden_grid);
    kept[u] = result.gates.i;
    kept[kLanes + u] = result.gates.f;
    kept[2 * kLanes + u] = result.gates.g;
    kept[3 * kLanes + u] = result.gates.o;
    kept[4 * kLanes + u] = result.cell;
    hidden[u] = result.hidden;
    const float cell_min = RecordMin(result.cell_value), cell_max = RecordMax(result.cell_value);
    const float hidden_min = RecordMin(result.hidden_value), hidden_max = RecordMax(result.hidden_value);
    record->cell_min[u] = cell_min < record->cell_min[u] ? cell_min : record->cell_min[u];
    record->cell_max[u] = cell_max > record->cell_max[u] ? cell_max : record->cell_max[u];
    record->hidden_min[u] = hidden_min < record->hidden_min[u] ? hidden_min : record->hidden_min[u];
    record->hidden_max[u] = hidden_max > record->hidden_max[u] ? hidden_max : record->hidden_max[u];
  }
}

void Backward(const StateGrid& cells, const StateGrid& hiddens, const float* kept, const float* cell_before,
              const float* hidden_slope, float* cell_slope, float* slopes) {
  const StateGrid cell_grid = cells, hidden_grid = hiddens;
#pragma GCC ivdep
  for (int u = 0; u < kLanes; ++u) {
    const LstmGates gates = {kept[u], kept[kLanes + u], kept[2 * kLanes + u], kept[3 * kLanes + u]};
    const LstmSlopes result = LstmBackward(gates, cell_before[u], kept[4 * kLanes + u], cell_slope[u],
                                           hidden_slope[u], cell_grid, hidden_grid);
    slopes[u] = result.sums.i;
    slopes[kLanes + u] = result.sums.f;
    slopes[2 * kLanes + u] = result.sums.g;
    slopes[3 * kLanes + u] = result.sums.o;
    cell_slope[u] = result.cell;
  }
}

}  // namespace

const LstmRowKernels kLstmRowKernels = {Forward, Backward};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
