#include <algorithm>
#include <vector>

#include "core/fake_quant.h"
#include "core/lstm_loop.h"
#include "core/lstm_products.h"

namespace dqat::core {
namespace {

struct Records {
  Range cell, hidden;
};

void Merge(Range* range, float min, float max) {
  range->min = std::min(range->min, min);
  range->max = std::max(range->max, max);
}

void Step(const LstmShape& shape, const LstmArguments& arguments, const CellKernels& kernels,
          const LstmProducts& products, float* states, int64_t s, int64_t block, int64_t first, int64_t end,
          LstmResults* results, Records* records) {
  const TimeOrder order(shape, arguments);
  const int64_t padded = shape.padded_units(), unit = block * kLanes;
  const int64_t count = std::min(kLanes, shape.units - unit);
  const HiddenStates before = products.Before(s), after = products.Before(s + 1);
  LstmRecord record;
  std::fill_n(record.cell_min, kLanes, kInfinity);
  std::fill_n(record.hidden_min, kLanes, kInfinity);
  std::fill_n(record.cell_max, kLanes, -kInfinity);
  std::fill_n(record.hidden_max, kLanes, -kInfinity);
  alignas(64) float sums[kGroupRows * kPanelColumns], copies[kGroupRows * kPanelColumns];
  const bool is_whole = count == kLanes;
  for (int64_t group = first; group < end; group += kGroupRows) {
    const int64_t rows = std::min(kGroupRows, end - group);
    products.MultiplyHidden(before, block, group, rows, sums);
    LstmCell cells[kGroupRows];
    int64_t computed = 0;
    for (int64_t b = group; b < group + rows; ++b) {
      if (order.Masked(b, s)) continue;
      float* gates = results->gates + order.Row(b, s) * shape.gates() + unit;
      const int64_t state = b * padded + unit;
      cells[computed] = {sums + (b - group) * kPanelColumns, gates, states + state, after.values + state,
                         after.codes == nullptr ? nullptr : after.codes + state};
      if (!is_whole) {
        cells[computed].gates = copies + computed * kPanelColumns;
        LoadGates(gates, shape.units, count, cells[computed].gates);
      }
      ++computed;
    }
    kernels.Forward(computed, cells, products.Bias(block), is_whole ? shape.units : kLanes, &record);
    computed = 0;
    for (int64_t b = group; b < group + rows; ++b) {
      const int64_t row = order.Row(b, s);
      float* hidden = after.values + b * padded + unit;
      float* output = results->outputs + order.OutputRow(b, s) * shape.units + unit;
      if (order.Masked(b, s)) {
        const int64_t state = b * padded + unit;
        CopyLanes(before.values + state, hidden);
        if (after.codes != nullptr) std::copy_n(before.codes + state, kLanes, after.codes + state);
        if (s == 0) {
          std::fill_n(output, count, 0.0f);
        } else {
          StoreLanes(results->outputs + order.OutputRow(b, s - 1) * shape.units + unit, count, output);
        }
      } else {
        if (!is_whole) {
          StoreGates(copies + computed++ * kPanelColumns, shape.units, count,
                     results->gates + row * shape.gates() + unit);
        }
        StoreLanes(hidden, count, output);
      }
      StoreLanes(states + b * padded + unit, count, results->cells + row * shape.units + unit);
    }
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    Merge(&records->cell, record.cell_min[lane], record.cell_max[lane]);
    Merge(&records->hidden, record.hidden_min[lane], record.hidden_max[lane]);
  }
}

}  // namespace

int64_t LstmForwardWorkspace(const LstmShape& shape) {
  return shape.batch * shape.padded_units() + LstmProducts::Workspace(shape);
}

void LstmForward(const LstmShape& shape, const LstmArguments& arguments, LstmResults* results,
                 float* workspace, const Parallel& parallel) {
  float* cell = workspace;
  PadRows(shape, arguments.cell, cell);
  const CellKernels kernels(arguments);
  const LstmProducts products(shape, arguments, kernels.rounding(),
                              workspace + shape.batch * shape.padded_units(), parallel);
  const Division division(shape, parallel.threads);
  if (!division.by_rows()) products.MultiplyInputs(0, shape.rows(), results->gates, parallel);
  std::vector<Records> records(division.tasks(shape, shape.blocks()));
  const int64_t cost = kLanes * (shape.units * kGates / 16 + kCellCost);
  division.Run(
      shape, shape.blocks(), cost, 0, shape.time, 1, parallel,
      [&](int64_t first, int64_t end) {
        // Of these rows' sums, the input's share at all timesteps.
        const int64_t runs = arguments.time_major ? shape.time : 1;
        const int64_t stride = arguments.time_major ? 1 : shape.time;
        for (int64_t run = 0; run < runs; ++run) {
          products.MultiplyInputs(run * shape.batch + first * stride, (end - first) * stride, results->gates,
                                  OneThread());
        }
      },
      [&](int64_t task, int64_t s, int64_t block, int64_t first, int64_t end) {
        Step(shape, arguments, kernels, products, cell, s, block, first, end, results, &records[task]);
      });

  results->cell_record = results->hidden_record = Range();
  for (const Records& each : records) {
    Merge(&results->cell_record, each.cell.min, each.cell.max);
    Merge(&results->hidden_record, each.hidden.min, each.hidden.max);
  }
  for (Range* record : {&results->cell_record, &results->hidden_record}) {
    record->min += 0.0f;  // -0 becomes +0, so that equal records are equal bits
    record->max += 0.0f;
  }
  for (int64_t b = 0; b < shape.batch; ++b) {
    const int64_t row = b * shape.padded_units();
    std::copy_n(products.Before(shape.time).values + row, shape.units, results->hidden + b * shape.units);
    std::copy_n(cell + row, shape.units, results->cell + b * shape.units);
  }
}

}  // namespace dqat::core
