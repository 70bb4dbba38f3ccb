#include <algorithm>
#include <vector>

#include "core/fake_quant.h"
#include "core/lstm_loop.h"

namespace dqat::core {
namespace {

// A block of units of [depth, 4 units] as one panel [depth, 4, 16].
void PackGates(const LstmShape& shape, const float* weights, int64_t depth, int64_t block, float* packed) {
  float* panel = packed + block * depth * kPanelColumns;
  const int64_t unit = block * kLanes;
  for (int64_t row = 0; row < depth * kGates; ++row) {  // of [depth, 4]
    LoadLanes(weights + row * shape.units + unit, shape.units - unit, panel + row * kLanes);
  }
}

struct Records {
  Range cell, hidden;
};

void Merge(Range* range, float min, float max) {
  range->min = std::min(range->min, min);
  range->max = std::max(range->max, max);
}

struct Memory {
  Memory(const LstmShape& shape, float* memory) {
    const auto take = [&](int64_t count) {
      float* part = memory == nullptr ? nullptr : memory + size;
      size += count;
      return part;
    };
    kernel = take(PackedSize(shape.gates(), shape.features));
    recurrent = take(shape.blocks() * shape.units * kPanelColumns);
    bias = take(shape.blocks() * kPanelColumns);
    cell = take(shape.batch * shape.padded_units());
    for (float*& state : hidden) state = take(shape.batch * shape.padded_units());
  }
  int64_t size = 0;
  float *kernel, *recurrent, *bias;  // packed
  float* cell;                       // the state
  float* hidden[2];                  // the states before and after a timestep, by turns
};

void Step(const LstmShape& shape, const LstmArguments& arguments, const CellKernels& kernels,
          const Memory& memory, int64_t s, int64_t block, int64_t first, int64_t end, LstmResults* results,
          Records* records) {
  const TimeOrder order(shape, arguments);
  const int64_t padded = shape.padded_units(), unit = block * kLanes;
  const int64_t count = std::min(kLanes, shape.units - unit);
  const float* before = memory.hidden[s % 2];
  float* after = memory.hidden[(s + 1) % 2];
  LstmRecord record;
  std::fill_n(record.cell_min, kLanes, kInfinity);
  std::fill_n(record.hidden_min, kLanes, kInfinity);
  std::fill_n(record.cell_max, kLanes, -kInfinity);
  std::fill_n(record.hidden_max, kLanes, -kInfinity);
  alignas(64) float sums[kGroupRows * kPanelColumns], copies[kGroupRows * kPanelColumns];
  const bool is_whole = count == kLanes;
  for (int64_t group = first; group < end; group += kGroupRows) {
    const int64_t rows = std::min(kGroupRows, end - group);
    MultiplyPanel(rows, kPanelColumns, shape.units, {before + group * padded, padded, 1},
                  memory.recurrent + block * shape.units * kPanelColumns, sums, kPanelColumns,
                  /*continues=*/false);
    LstmCell cells[kGroupRows];
    int64_t computed = 0;
    for (int64_t b = group; b < group + rows; ++b) {
      if (order.Masked(b, s)) continue;
      float* gates = results->gates + order.Row(b, s) * shape.gates() + unit;
      cells[computed] = {sums + (b - group) * kPanelColumns, gates, memory.cell + b * padded + unit,
                         after + b * padded + unit};
      if (!is_whole) {
        cells[computed].gates = copies + computed * kPanelColumns;
        LoadGates(gates, shape.units, count, cells[computed].gates);
      }
      ++computed;
    }
    kernels.Forward(computed, cells, memory.bias + block * kPanelColumns, is_whole ? shape.units : kLanes,
                    &record);
    computed = 0;
    for (int64_t b = group; b < group + rows; ++b) {
      const int64_t row = order.Row(b, s);
      float* hidden = after + b * padded + unit;
      float* output = results->outputs + order.OutputRow(b, s) * shape.units + unit;
      if (order.Masked(b, s)) {
        CopyLanes(before + b * padded + unit, hidden);
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
      StoreLanes(memory.cell + b * padded + unit, count, results->cells + row * shape.units + unit);
    }
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    Merge(&records->cell, record.cell_min[lane], record.cell_max[lane]);
    Merge(&records->hidden, record.hidden_min[lane], record.hidden_max[lane]);
  }
}

}  // namespace

int64_t LstmForwardWorkspace(const LstmShape& shape) { return Memory(shape, nullptr).size; }

void LstmForward(const LstmShape& shape, const LstmArguments& arguments, LstmResults* results,
                 float* workspace, const Parallel& parallel) {
  const Memory memory(shape, workspace);
  if (arguments.bias == nullptr) std::fill_n(memory.bias, shape.blocks() * kPanelColumns, 0.0f);
  // There are as many panels of the kernel as blocks of units.
  const int64_t depth = shape.units + shape.features;
  parallel.ForEach(shape.blocks(), depth * kPanelColumns / 8, [&](int64_t block) {
    PackGates(shape, arguments.recurrent, shape.units, block, memory.recurrent);
    if (arguments.bias != nullptr) PackGates(shape, arguments.bias, 1, block, memory.bias);
    PackPanel(block, shape.gates(), shape.features, {arguments.kernel, 1, shape.gates()},
              memory.kernel + block * shape.features * kPanelColumns);
  });
  PadRows(shape, arguments.cell, memory.cell);
  PadRows(shape, arguments.hidden, memory.hidden[0]);

  const CellKernels kernels(arguments);
  const Division division(shape, parallel.threads);
  const auto add_inputs = [&](int64_t first, int64_t count, const Parallel& threads) {
    Multiply(count, shape.gates(), shape.features, {arguments.x + first * shape.features, shape.features, 1},
             memory.kernel, results->gates + first * shape.gates(), shape.gates(), threads);
  };
  if (!division.by_rows()) add_inputs(0, shape.rows(), parallel);
  std::vector<Records> records(division.tasks(shape, shape.blocks()));
  const int64_t cost = kLanes * (shape.units * kGates / 16 + kCellCost);
  division.Run(
      shape, shape.blocks(), cost, 0, shape.time, 1, parallel,
      [&](int64_t first, int64_t end) {
        // Of these rows' sums, the input's share at all timesteps.
        const int64_t runs = arguments.time_major ? shape.time : 1;
        const int64_t stride = arguments.time_major ? 1 : shape.time;
        for (int64_t run = 0; run < runs; ++run) {
          add_inputs(run * shape.batch + first * stride, (end - first) * stride, OneThread());
        }
      },
      [&](int64_t task, int64_t s, int64_t block, int64_t first, int64_t end) {
        Step(shape, arguments, kernels, memory, s, block, first, end, results, &records[task]);
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
    std::copy_n(memory.hidden[shape.time % 2] + row, shape.units, results->hidden + b * shape.units);
    std::copy_n(memory.cell + row, shape.units, results->cell + b * shape.units);
  }
}

}  // namespace dqat::core
