// Compiled once per instruction set with -DDQAT_INSTRUCTION_SET=<namespace>; see rows.cc.
#include "core/lstm_rows.h"

#include "core/element.h"

namespace dqat::core::DQAT_INSTRUCTION_SET {
namespace {

constexpr int kLanes = kUnitLanes;

static inline LstmGates Lane(const float* gates, int64_t stride, int u) {
  return {gates[u], gates[stride + u], gates[2 * stride + u], gates[3 * stride + u]};
}

static inline void Store(const LstmGates& values, float* gates, int64_t stride, int u) {
  gates[u] = values.i;
  gates[stride + u] = values.f;
  gates[2 * stride + u] = values.g;
  gates[3 * stride + u] = values.o;
}

static inline void Record(float cell_value, float hidden_value, int u, LstmRecord* record) {
  const float cell_min = RecordMin(cell_value), cell_max = RecordMax(cell_value);
  const float hidden_min = RecordMin(hidden_value), hidden_max = RecordMax(hidden_value);
  record->cell_min[u] = cell_min < record->cell_min[u] ? cell_min : record->cell_min[u];
  record->cell_max[u] = cell_max > record->cell_max[u] ? cell_max : record->cell_max[u];
  record->hidden_min[u] = hidden_min < record->hidden_min[u] ? hidden_min : record->hidden_min[u];
  record->hidden_max[u] = hidden_max > record->hidden_max[u] ? hidden_max : record->hidden_max[u];
}

void Forward(const StateGrid& cell_states, const StateGrid& hidden_states, int64_t count,
             const LstmCell* cells, const float* bias, int64_t stride, LstmRecord* record) {
  const StateGrid cell_grid = cell_states, hidden_grid = hidden_states;
  for (int64_t c = 0; c < count; ++c) {
    const LstmCell at = cells[c];
#pragma GCC ivdep
    for (int u = 0; u < kLanes; ++u) {
      LstmGates sums = Lane(at.gates, stride, u);
      sums.i = (sums.i + bias[u]) + at.recurrent[u];
      sums.f = (sums.f + bias[kLanes + u]) + at.recurrent[kLanes + u];
      sums.g = (sums.g + bias[2 * kLanes + u]) + at.recurrent[2 * kLanes + u];
      sums.o = (sums.o + bias[3 * kLanes + u]) + at.recurrent[3 * kLanes + u];
      const LstmOutcome result = LstmForward(sums, at.cell[u], cell_grid, hidden_grid);
      Store(result.gates, at.gates, stride, u);
      at.cell[u] = result.cell;
      at.hidden[u] = result.hidden;
      Record(result.cell_value, result.hidden_value, u, record);
    }
  }
}

// A loop of its own, since it is no vector.
static inline void LookUp(const float* table, const int32_t* codes, float* values) {
#pragma GCC unroll 16
  for (int u = 0; u < kLanes; ++u) values[u] = table[codes[u]];
}

// What an integer cell is between two tables.
struct Staged {
  alignas(64) int32_t codes[4 * kLanes];
  float sums[4 * kLanes], values[4 * kLanes], cell_value[kLanes], tanh[kLanes];
};

void IntegerForward(const StateGrid& cell_states, const StateGrid& hidden_states,
                    const LstmRounding& roundings, const LstmTables& tables, int64_t count,
                    const LstmCell* cells, const float* bias, int64_t stride, LstmRecord* record) {
  const StateGrid cell_grid = cell_states, hidden_grid = hidden_states;
  const LstmRounding rounding = roundings;
  // Some cells go through each stage together: one alone would wait for its own results most of the time.
  constexpr int64_t kTogether = 4;
  Staged staged[kTogether];
  for (; count > 0; count -= kTogether, cells += kTogether) {
    const int64_t some = count < kTogether ? count : kTogether;
    for (int gate = 0; gate < 4; ++gate) {
      const int first = gate * kLanes;
      for (int64_t c = 0; c < some; ++c) {
        const float *from_input = cells[c].gates + gate * stride, *recurrent = cells[c].recurrent + first;
        int32_t* codes = staged[c].codes + first;
        float* sums = staged[c].sums + first;
#pragma GCC ivdep
        for (int u = 0; u < kLanes; ++u) {
          const float input = from_input[u] + bias[first + u];
          codes[u] = GateCode(input, recurrent[u], rounding, gate);
          sums[u] = input + recurrent[u];
        }
      }
    }
    for (int64_t c = 0; c < some; ++c) {
      for (int gate = 0; gate < 4; ++gate) {
        const int first = gate * kLanes;
        LookUp(gate == 2 ? tables.gate_tanh : tables.logistic, staged[c].codes + first,
               staged[c].values + first);
      }
    }
    for (int64_t c = 0; c < some; ++c) {
      float *gates = cells[c].gates, *cell = cells[c].cell;
      Staged* at = &staged[c];
#pragma GCC ivdep
      for (int u = 0; u < kLanes; ++u) {
        LstmOutcome result;
        UpdateCell(Lane(at->values, kLanes, u), Lane(at->sums, kLanes, u), cell[u], cell_grid, rounding,
                   &result);
        Store(result.gates, gates, stride, u);
        cell[u] = result.cell;
        at->cell_value[u] = result.cell_value;
        at->codes[u] = CellCode(result.cell, rounding);
      }
    }
    for (int64_t c = 0; c < some; ++c) LookUp(tables.cell_tanh, staged[c].codes, staged[c].tanh);
    for (int64_t c = 0; c < some; ++c) {
      const float* cell = cells[c].cell;
      float* hidden = cells[c].hidden;
      const Staged& at = staged[c];
#pragma GCC ivdep
      for (int u = 0; u < kLanes; ++u) {
        LstmOutcome result;
        UpdateHidden(at.values[3 * kLanes + u], TanhOf(at.tanh[u], cell[u]), hidden_grid, &result);
        hidden[u] = result.hidden;
        Record(at.cell_value[u], result.hidden_value, u, record);
      }
      int16_t* codes = cells[c].codes;
      if (codes == nullptr) continue;
#pragma GCC ivdep
      for (int u = 0; u < kLanes; ++u)
        codes[u] = (int16_t)(int32_t)floorf(hidden[u] * rounding.hidden_codes + 0.5f);
    }
  }
}

void Backward(const StateGrid& cells, const StateGrid& hiddens, const float* gates, int64_t stride,
              const float* cell_before, const float* cell, const float* hidden_slope, float* cell_slope,
              float* sums, int64_t sums_stride) {
  const StateGrid cell_grid = cells, hidden_grid = hiddens;
#pragma GCC ivdep
  for (int u = 0; u < kLanes; ++u) {
    const LstmGates kept = Lane(gates, stride, u);
    const LstmSlopes result =
        LstmBackward(kept, cell_before[u], Tanh(cell[u]), CellSum(GatesOf(kept), cell_before[u]),
                     cell_slope[u], hidden_slope[u], cell_grid, hidden_grid);
    Store(result.sums, sums, sums_stride, u);
    cell_slope[u] = result.cell;
  }
}

void IntegerBackward(const StateGrid& cells, const StateGrid& hiddens, const LstmRounding& roundings,
                     const LstmTables& tables, const float* gates, int64_t stride, const float* cell_before,
                     const float* cell, const float* hidden_slope, float* cell_slope, float* sums,
                     int64_t sums_stride) {
  const StateGrid cell_grid = cells, hidden_grid = hiddens;
  const LstmRounding rounding = roundings;
  alignas(64) int32_t codes[kLanes];
  alignas(64) float tanh[kLanes];
#pragma GCC ivdep
  for (int u = 0; u < kLanes; ++u) codes[u] = CellCode(cell[u], rounding);
  LookUp(tables.cell_tanh, codes, tanh);
#pragma GCC ivdep
  for (int u = 0; u < kLanes; ++u) {
    const LstmGates kept = Lane(gates, stride, u);
    const LstmSlopes result = LstmBackward(kept, cell_before[u], TanhOf(tanh[u], cell[u]),
                                           RoundedCellSum(GatesOf(kept), cell_before[u], rounding),
                                           cell_slope[u], hidden_slope[u], cell_grid, hidden_grid);
    Store(result.sums, sums, sums_stride, u);
    cell_slope[u] = result.cell;
  }
}

}  // namespace

const LstmRowKernels kLstmRowKernels = {Forward, IntegerForward, Backward, IntegerBackward};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
