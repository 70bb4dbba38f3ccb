#include <algorithm>

#include "core/lstm_loop.h"
#include "core/lstm_slope_product.h"
#include "core/lstm_weight_gradients.h"

namespace dqat::core {
namespace {

constexpr int64_t kBlocksPerPanel = kPanelColumns / kLanes;

struct Memory {
  Memory(const LstmShape& shape, float* memory) {
    const auto take = [&](int64_t count) {
      float* part = memory == nullptr ? nullptr : memory + size;
      size += count;
      return part;
    };
    recurrent = take(LstmSlopeProduct::Workspace(shape));
    for (float** state : {&cell_slope, &hidden_slope, &output_slope}) {
      *state = take(shape.batch * shape.padded_units());
    }
    rows = take(LstmWeightGradients::Workspace(shape));
  }
  int64_t size = 0;
  float *recurrent, *rows;
  // What has arrived so far at the states, and, where timesteps are masked, at the output that they repeat.
  float *cell_slope, *hidden_slope, *output_slope;
};

void Step(const LstmShape& shape, const LstmArguments& arguments, const CellKernels& kernels,
          const LstmSlopeProduct& product, const Memory& memory, const LstmKept& kept,
          const LstmOutputSlopes& slopes, const LstmGradients& gradients, int64_t s, int64_t panel,
          int64_t first, int64_t end) {
  const TimeOrder order(shape, arguments);
  const int64_t padded = shape.padded_units(), width = shape.gates();
  const int64_t first_block = panel * kBlocksPerPanel;
  const int64_t end_block = std::min(shape.blocks(), first_block + kBlocksPerPanel);
  alignas(64) float sums[kGroupRows * kPanelColumns];
  for (int64_t group = first; group < end; group += kGroupRows) {
    const int64_t rows = std::min(kGroupRows, end - group);
    if (s + 1 < shape.time) {
      product.Multiply(panel, gradients.sums + order.Row(group, s + 1) * width, order.batch_stride() * width,
                       rows, sums);
    } else {
      std::fill_n(sums, rows * kPanelColumns, 0.0f);
    }
    for (int64_t b = group; b < group + rows; ++b) {
      for (int64_t block = first_block; block < end_block; ++block) {
        const int64_t unit = block * kLanes, count = std::min(kLanes, shape.units - unit);
        float* arriving = sums + (b - group) * kPanelColumns + (block - first_block) * kLanes;
        float* hidden_slope = memory.hidden_slope + b * padded + unit;
        float* cell_slope = memory.cell_slope + b * padded + unit;
        for (int64_t lane = 0; lane < kLanes; ++lane) arriving[lane] += hidden_slope[lane];
        if (s < 0) {
          StoreLanes(arriving, count, gradients.hidden + b * shape.units + unit);
          StoreLanes(cell_slope, count, gradients.cell + b * shape.units + unit);
          continue;
        }
        float output_slope[kLanes];
        LoadLanes(slopes.outputs + order.OutputRow(b, s) * shape.units + unit, count, output_slope);
        if (arguments.mask != nullptr) {
          float* repeated = memory.output_slope + b * padded + unit;
          for (int64_t lane = 0; lane < kLanes; ++lane) output_slope[lane] += repeated[lane];
          if (order.Masked(b, s)) {
            CopyLanes(output_slope, repeated);
            CopyLanes(arriving, hidden_slope);
          } else {
            std::fill_n(repeated, kLanes, 0.0f);
          }
        }
        const int64_t row = order.Row(b, s);
        float* to_sums = gradients.sums + row * width + unit;
        if (order.Masked(b, s)) {
          for (int64_t gate = 0; gate < kGates; ++gate) {
            std::fill_n(to_sums + gate * shape.units, count, 0.0f);
          }
          continue;
        }
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          arriving[lane] += output_slope[lane];
          hidden_slope[lane] = 0.0f;
        }
        float cell_before[kLanes], cell[kLanes];
        LoadLanes(
            (s == 0 ? arguments.cell + b * shape.units : kept.cells + order.Row(b, s - 1) * shape.units) +
                unit,
            count, cell_before);
        LoadLanes(kept.cells + row * shape.units + unit, count, cell);
        // What is kept may stand where its gradient goes.
        const float* gates = kept.gates + row * width + unit;
        if (count == kLanes) {
          kernels.Backward(gates, shape.units, cell_before, cell, arriving, cell_slope, to_sums, shape.units);
        } else {
          float copy[kPanelColumns];
          LoadGates(gates, shape.units, count, copy);
          kernels.Backward(copy, kLanes, cell_before, cell, arriving, cell_slope, copy, kLanes);
          StoreGates(copy, shape.units, count, to_sums);
        }
      }
    }
  }
}

}  // namespace

int64_t LstmBackwardWorkspace(const LstmShape& shape) { return Memory(shape, nullptr).size; }

void LstmBackward(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
                  const LstmKept& kept, const LstmOutputSlopes& slopes, const LstmGradients& gradients,
                  float* workspace, const Parallel& parallel) {
  const Memory memory(shape, workspace);
  const CellKernels kernels(arguments);
  LstmSlopeProduct product(shape, arguments, kernels.rounding().is_integer, memory.recurrent);
  const LstmWeightGradients weights(shape, arguments, outputs, memory.rows);
  const int64_t panels = Panels(shape.units);
  parallel.ForEach(panels + weights.parts(), weights.part_cost(), [&](int64_t index) {
    if (index < panels) {
      product.Pack(index);
    } else {
      weights.Gather(index - panels);
    }
  });
  product.Finish(parallel);
  PadRows(shape, slopes.cell, memory.cell_slope);
  PadRows(shape, slopes.hidden, memory.hidden_slope);
  std::fill_n(memory.output_slope, shape.batch * shape.padded_units(), 0.0f);
  const Division division(shape, parallel.threads);
  const int64_t cost = kPanelColumns * (shape.gates() / 16 + 2 * kCellCost);
  // The step before the first one only takes the gradient to the initial states.
  division.Run(
      shape, panels, cost, shape.time - 1, -2, -1, parallel, [](int64_t, int64_t) {},
      [&](int64_t, int64_t s, int64_t panel, int64_t first, int64_t end) {
        Step(shape, arguments, kernels, product, memory, kept, slopes, gradients, s, panel, first, end);
      });
  weights.Compute(gradients, parallel);
}

}  // namespace dqat::core
