#include <algorithm>
#include <vector>

#include "core/lstm_loop.h"

namespace dqat::core {
namespace {

constexpr int64_t kBlocksPerPanel = kPanelColumns / kLanes;
// Rows that the weights' gradients add up at a time, of as many as are gathered beforehand.
constexpr int64_t kGradientDepth = 256, kGatheredRows = 1024;
constexpr int64_t kGatheredColumns = 48;  // whole cache lines and whole tiles

int64_t GatheredSize(int64_t columns, int64_t rows) {
  return (columns + kGatheredColumns - 1) / kGatheredColumns * kGatheredColumns * rows;
}

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
    rows = std::min(kGatheredRows, shape.rows());
    hidden_before = take(GatheredSize(shape.units, rows));
    x = take(GatheredSize(shape.features, rows));
  }
  int64_t size = 0;
  float* recurrent;  // transposed and packed
  // What has arrived so far at the states, and, where timesteps are masked, at the output that they repeat.
  float *cell_slope, *hidden_slope, *output_slope;
  int64_t rows;
  // Of some rows, as Gather has it: the hidden states that their timesteps started from, and x.
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

// A row's columns, into blocks of 48 columns [blocks, rows, 48]: then the tiles of the weights' gradients
// read consecutive cache lines as they go through the rows.
void Gather(const float* columns, int64_t count, int64_t row, int64_t rows, float* blocks) {
  for (int64_t first = 0; first < count; first += kGatheredColumns) {
    std::copy_n(columns + first, std::min(kGatheredColumns, count - first),
                blocks + first * rows + row * kGatheredColumns);
  }
}

// A panel's columns of a weight's gradient [columns, 4 units], from `depth` rows of what Gather has made.
void AddGradient(const float* blocks, int64_t columns, int64_t first, int64_t depth, int64_t rows,
                 const float* panel, int64_t width, float* gradient, int64_t gates, bool continues) {
  for (int64_t column = 0; column < columns; column += kGatheredColumns) {
    MultiplyPanel(std::min(kGatheredColumns, columns - column), width, depth,
                  {blocks + column * rows + first * kGatheredColumns, 1, kGatheredColumns}, panel,
                  gradient + column * gates, gates, continues);
  }
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

// What the weights' gradients read of memory.rows rows from `first` on: x, and the hidden states that their
// timesteps started from.
class Gathering {
 public:
  Gathering(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
            const Memory& memory)
      : shape_(shape), x_(arguments.x), before_(HiddenBefore(shape, arguments, outputs)), memory_(memory) {}

  int64_t parts() const { return (memory_.rows + kRows - 1) / kRows; }
  int64_t cost() const { return kRows * (shape_.units + shape_.features) / 4; }

  void Run(int64_t first, int64_t part) const {
    const int64_t rows = std::min(memory_.rows, shape_.rows() - first);
    for (int64_t row = part * kRows; row < std::min(rows, (part + 1) * kRows); ++row) {
      Gather(before_[first + row], shape_.units, row, rows, memory_.hidden_before);
      Gather(x_ + (first + row) * shape_.features, shape_.features, row, rows, memory_.x);
    }
  }

 private:
  static constexpr int64_t kRows = 64;

  const LstmShape& shape_;
  const float* const x_;
  const std::vector<const float*> before_;
  const Memory& memory_;
};

// All three weight gradients: sums over all rows of the input, in the order of memory. The first rows are
// gathered already.
void WeightGradients(const LstmShape& shape, const Gathering& gathering, const Memory& memory,
                     const LstmGradients& gradients, const Parallel& parallel) {
  const int64_t gates = shape.gates();
  std::fill_n(gradients.bias, gates, 0.0f);
  for (int64_t first = 0; first == 0 || first < shape.rows(); first += memory.rows) {
    const int64_t rows = std::min(memory.rows, shape.rows() - first);
    if (first > 0) {
      parallel.ForEach(gathering.parts(), gathering.cost(),
                       [&](int64_t part) { gathering.Run(first, part); });
    }
    const int64_t cost = rows * (shape.features + shape.units) * kPanelColumns / 16;
    parallel.ForEach(Panels(gates), cost, [&](int64_t index) {
      const int64_t column = index * kPanelColumns, width = std::min<int64_t>(kPanelColumns, gates - column);
      alignas(64) float panel[kGradientDepth * kPanelColumns], bias[kPanelColumns] = {};
      std::copy_n(gradients.bias + column, width, bias);
      for (int64_t row = 0; row == 0 || row < rows; row += kGradientDepth) {
        const int64_t depth = std::min(kGradientDepth, rows - row);
        PackPanel(index, gates, depth, {gradients.sums + (first + row) * gates, 1, gates}, panel);
        for (int64_t k = 0; k < depth; ++k) {
          for (int64_t j = 0; j < kPanelColumns; ++j) bias[j] += panel[k * kPanelColumns + j];
        }
        const bool continues = first + row > 0;
        AddGradient(memory.x, shape.features, row, depth, rows, panel, width, gradients.kernel + column,
                    gates, continues);
        AddGradient(memory.hidden_before, shape.units, row, depth, rows, panel, width,
                    gradients.recurrent + column, gates, continues);
      }
      std::copy_n(bias, width, gradients.bias + column);
    });
    if (rows == 0) return;
  }
}

}  // namespace

int64_t LstmBackwardWorkspace(const LstmShape& shape) { return Memory(shape, nullptr).size; }

void LstmBackward(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
                  const LstmKept& kept, const LstmOutputSlopes& slopes, const LstmGradients& gradients,
                  float* workspace, const Parallel& parallel) {
  const Memory memory(shape, workspace);
  const int64_t gates = shape.gates();
  const Gathering gathering(shape, arguments, outputs, memory);
  const int64_t panels = Panels(shape.units);
  parallel.ForEach(panels + gathering.parts(), gathering.cost(), [&](int64_t index) {
    if (index < panels) {
      PackPanel(index, shape.units, gates, {arguments.recurrent, gates, 1},
                memory.recurrent + index * gates * kPanelColumns);
    } else {
      gathering.Run(0, index - panels);
    }
  });
  PadRows(shape, slopes.cell, memory.cell_slope);
  PadRows(shape, slopes.hidden, memory.hidden_slope);
  std::fill_n(memory.output_slope, shape.batch * shape.padded_units(), 0.0f);
  const CellKernels kernels(arguments);
  const Division division(shape, parallel.threads);
  const int64_t cost = kPanelColumns * (gates / 16 + 2 * kCellCost);
  // The step before the first one only takes the gradient to the initial states.
  division.Run(
      shape, Panels(shape.units), cost, shape.time - 1, -2, -1, parallel, [](int64_t, int64_t) {},
      [&](int64_t, int64_t s, int64_t panel, int64_t first, int64_t end) {
        Step(shape, arguments, kernels, memory, kept, slopes, gradients, s, panel, first, end);
      });
  WeightGradients(shape, gathering, memory, gradients, parallel);
}

}  // namespace dqat::core
