#include <algorithm>
#include <vector>

#include "core/lstm_loop.h"

namespace dqat::core {
namespace {

constexpr int64_t kBlocksPerPanel = kPanelColumns / kLanes;
// Rows that the weights' gradients add up at a time.
constexpr int64_t kGradientDepth = 256;

struct Memory {
  Memory(const LstmShape& shape, float* memory) {
    const auto take = [&](int64_t count) {
      float* part = memory == nullptr ? nullptr : memory + size;
      size += count;
      return part;
    };
    recurrent = take(PackedSize(shape.units, shape.gates()));
    for (float** state : {&cell_slope, &hidden_slope, &output_slope}) {
      *state = take(shape.batch * shape.padded_units());
    }
    depth = std::min(kGradientDepth, shape.rows());
    hidden_before = take(depth * shape.units);
    x = take(depth * shape.features);
  }
  int64_t size = 0;
  float* recurrent;  // transposed and packed
  // What has arrived so far at the states, and, where timesteps are masked, at the output that they repeat.
  float *cell_slope, *hidden_slope, *output_slope;
  int64_t depth;
  // Of some rows, transposed: the hidden states that their timesteps started from [units, depth], and x
  // [features, depth].
  float *hidden_before, *x;
};

void Step(const LstmShape& shape, const LstmArguments& arguments, const CellKernels& kernels,
          const Memory& memory, const LstmKept& kept, const LstmOutputSlopes& slopes,
          const LstmGradients& gradients, int64_t s, int64_t panel, int64_t first, int64_t end) {
  const TimeOrder order(shape, arguments);
  const int64_t padded = shape.padded_units(), width = shape.gates();
  const int64_t first_block = panel * kBlocksPerPanel;
  const int64_t end_block = std::min(shape.blocks(), first_block + kBlocksPerPanel);
  alignas(64) float sums[kGroupRows * kPanelColumns];
  for (int64_t group = first; group < end; group += kGroupRows) {
    const int64_t rows = std::min(kGroupRows, end - group);
    if (s + 1 < shape.time) {
      MultiplyPanel(rows, kPanelColumns, width,
                    {gradients.sums + order.Row(group, s + 1) * width, order.batch_stride() * width, 1},
                    memory.recurrent + panel * width * kPanelColumns, sums, kPanelColumns,
                    /*continues=*/false);
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
            std::copy_n(output_slope, kLanes, repeated);
            std::copy_n(arriving, kLanes, hidden_slope);
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
        StagedGates gates(kept.gates + row * width + unit, shape.units, count);
        gates.Load();
        StagedGates target(to_sums, shape.units, count);
        kernels.Backward(gates.data(), gates.stride(), cell_before, cell, arriving, cell_slope, target.data(),
                         target.stride());
        target.Store();
      }
    }
  }
}

// [rows, columns] from `row(r)` on, as [columns, rows]: then a tile of the weights' gradient reads
// consecutive values as it goes through the rows.
template <typename Row>
void Transpose(int64_t rows, int64_t columns, Row row, float* transposed, const Parallel& parallel) {
  constexpr int64_t kRows = 16;
  parallel.ForEach((rows + kRows - 1) / kRows, kRows * columns, [&](int64_t block) {
    const int64_t first = block * kRows, count = std::min(kRows, rows - first);
    const float* sources[kRows];
    for (int64_t r = 0; r < count; ++r) sources[r] = row(first + r);
    for (int64_t column = 0; column < columns; ++column) {
      float* target = transposed + column * rows + first;
      for (int64_t r = 0; r < count; ++r) target[r] = sources[r][column];
    }
  });
}

// For each row of the input the hidden state that its timestep started from.
std::vector<const float*> HiddenBefore(const LstmShape& shape, const LstmArguments& arguments,
                                       const float* outputs) {
  const TimeOrder order(shape, arguments);
  std::vector<const float*> before(shape.rows());
  for (int64_t b = 0; b < shape.batch; ++b) {
    const float* state = arguments.hidden + b * shape.units;
    for (int64_t s = 0; s < shape.time; ++s) {
      before[order.Row(b, s)] = state;
      if (!order.Masked(b, s)) state = outputs + order.OutputRow(b, s) * shape.units;
    }
  }
  return before;
}

// All three weight gradients: sums over all rows of the input, in the order of memory.
void WeightGradients(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
                     const Memory& memory, const LstmGradients& gradients, const Parallel& parallel) {
  const int64_t gates = shape.gates();
  const std::vector<const float*> before = HiddenBefore(shape, arguments, outputs);
  std::fill_n(gradients.bias, gates, 0.0f);
  for (int64_t first = 0; first == 0 || first < shape.rows(); first += memory.depth) {
    const int64_t depth = std::min(memory.depth, shape.rows() - first);
    Transpose(
        depth, shape.units, [&](int64_t row) { return before[first + row]; }, memory.hidden_before, parallel);
    Transpose(
        depth, shape.features, [&](int64_t row) { return arguments.x + (first + row) * shape.features; },
        memory.x, parallel);
    const int64_t cost = depth * (shape.features + shape.units) * kPanelColumns / 16;
    parallel.ForEach(Panels(gates), cost, [&](int64_t index) {
      const int64_t column = index * kPanelColumns, width = std::min<int64_t>(kPanelColumns, gates - column);
      alignas(64) float panel[kGradientDepth * kPanelColumns];
      PackPanel(index, gates, depth, {gradients.sums + first * gates, 1, gates}, panel);
      float* bias = gradients.bias + column;
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t j = 0; j < width; ++j) bias[j] += panel[k * kPanelColumns + j];
      }
      MultiplyPanel(shape.features, width, depth, {memory.x, depth, 1}, panel, gradients.kernel + column,
                    gates, /*continues=*/first > 0);
      MultiplyPanel(shape.units, width, depth, {memory.hidden_before, depth, 1}, panel,
                    gradients.recurrent + column, gates, /*continues=*/first > 0);
    });
    if (depth == 0) return;
  }
}

}  // namespace

int64_t LstmBackwardWorkspace(const LstmShape& shape) { return Memory(shape, nullptr).size; }

void LstmBackward(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
                  const LstmKept& kept, const LstmOutputSlopes& slopes, const LstmGradients& gradients,
                  float* workspace, const Parallel& parallel) {
  const Memory memory(shape, workspace);
  const int64_t gates = shape.gates();
  Pack(shape.units, gates, {arguments.recurrent, gates, 1}, memory.recurrent, parallel);
  PadRows(shape, slopes.cell, memory.cell_slope);
  PadRows(shape, slopes.hidden, memory.hidden_slope);
  std::fill_n(memory.output_slope, shape.batch * shape.padded_units(), 0.0f);
  const CellKernels kernels(arguments);
  const Division division(shape, parallel.threads);
  const int64_t cost = kPanelColumns * (gates / 16 + 2 * kCellCost);
  // The step before the first one only takes the gradient to the initial states.
  division.Run(shape, Panels(shape.units), cost, shape.time - 1, -2, -1, parallel,
               [&](int64_t, int64_t s, int64_t panel, int64_t first, int64_t end) {
                 Step(shape, arguments, kernels, memory, kept, slopes, gradients, s, panel, first, end);
               });
  WeightGradients(shape, arguments, outputs, memory, gradients, parallel);
}

}  // namespace dqat::core
