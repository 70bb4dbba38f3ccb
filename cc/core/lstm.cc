#include "core/lstm.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/fake_quant.h"
#include "core/instruction_set.h"
#include "core/products.h"

namespace dqat::core {
namespace {

constexpr int64_t kLanes = kUnitLanes;
constexpr int64_t kGates = 4;
constexpr int64_t kKeptBlock = kKeptParts * kLanes;
constexpr int64_t kBlocksPerPanel = kPanelColumns / kLanes;
static_assert(kGates * kLanes == kPanelColumns, "four gates of a block of units are a panel");

// Rows whose sums are held at a time: within the first-level cache.
constexpr int64_t kGroupRows = 48;
// Rows of the input that a task projects, and that a weight gradient adds up at a time.
constexpr int64_t kProjectedRows = 192;
constexpr int64_t kGradientDepth = 512;
// Each thread takes some rows through the whole sequence where it gets enough of them to make use of the
// weights that it reads, or where the recurrent weights fit into every core's second-level cache. Otherwise
// threads divide the units, and meet after each timestep, which costs much where other programs want the
// cores too.
constexpr int64_t kRowsPerThread = 12;
constexpr int64_t kSharedWeightBytes = 1 << 20;
constexpr int64_t kCellCost = 8;  // cycles for a unit, about; a product's multiply-adds are 16 a cycle

const LstmRowKernels& LstmKernels() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  const char* name = InstructionSet();
  if (std::strcmp(name, "avx512") == 0) return avx512::kLstmRowKernels;
  if (std::strcmp(name, "avx2") == 0) return avx2::kLstmRowKernels;
#endif
  return baseline::kLstmRowKernels;
}

// `count` values, then zeros.
void LoadLanes(const float* source, int64_t count, float* lanes) {
  if (count >= kLanes) {
    std::copy_n(source, kLanes, lanes);
  } else {
    std::fill_n(std::copy_n(source, count, lanes), kLanes - count, 0.0f);
  }
}

void StoreLanes(const float* lanes, int64_t count, float* target) {
  std::copy_n(lanes, std::min(count, kLanes), target);
}

// Rows of `units` values, padded to whole blocks.
void PadRows(const LstmShape& shape, const float* source, float* padded) {
  for (int64_t row = 0; row < shape.batch; ++row) {
    float* end = std::copy_n(source + row * shape.units, shape.units, padded + row * shape.padded_units());
    std::fill_n(end, shape.padded_units() - shape.units, 0.0f);
  }
}

// [depth, 4 units] as one panel of [depth, 4, 16] for each block of units.
void PackGates(const LstmShape& shape, const float* weights, int64_t depth, float* packed,
               const Parallel& parallel) {
  parallel.ForEach(shape.blocks(), depth * kPanelColumns, [&](int64_t block) {
    float* panel = packed + block * depth * kPanelColumns;
    const int64_t unit = block * kLanes;
    for (int64_t row = 0; row < depth * kGates; ++row) {  // of [depth, 4]
      LoadLanes(weights + row * shape.units + unit, shape.units - unit, panel + row * kLanes);
    }
  });
}

// How the work of a time loop is divided.
class Division {
 public:
  Division(const LstmShape& shape, int threads)
      : by_rows_(threads == 1 || shape.batch >= kRowsPerThread * threads ||
                 static_cast<int64_t>(sizeof(float)) * shape.gates() * shape.units <= kSharedWeightBytes),
        rows_(by_rows_ ? std::max<int64_t>(4, (shape.batch + threads - 1) / threads) : shape.batch) {}

  // Calls work(task, timestep, column block, first row, end of rows) for all timesteps in the given order, a
  // timestep's after all of those before it that touch the same rows. `task` is less than tasks().
  template <typename Work>
  void Run(const LstmShape& shape, int64_t blocks, int64_t block_cost, int64_t first, int64_t end,
           int64_t step, const Parallel& parallel, Work work) const {
    if (shape.batch == 0) return;  // however many timesteps an empty tensor claims to have
    if (by_rows_) {
      const int64_t cost = (end - first) * step * blocks * block_cost * rows_;
      parallel.ForEach(tasks(shape, blocks), cost, [&](int64_t task) {
        const int64_t row = task * rows_, last = std::min(shape.batch, row + rows_);
        for (int64_t s = first; s != end; s += step) {
          for (int64_t block = 0; block < blocks; ++block) work(task, s, block, row, last);
        }
      });
      return;
    }
    for (int64_t s = first; s != end; s += step) {
      parallel.ForEach(blocks, block_cost * shape.batch,
                       [&](int64_t block) { work(block, s, block, 0, shape.batch); });
    }
  }

  int64_t tasks(const LstmShape& shape, int64_t blocks) const {
    return by_rows_ ? (shape.batch + rows_ - 1) / rows_ : blocks;
  }

 private:
  const bool by_rows_;
  const int64_t rows_;
};

struct Records {
  Range cell, hidden;
};

void Merge(Range* range, float min, float max) {
  range->min = std::min(range->min, min);
  range->max = std::max(range->max, max);
}

// Where timesteps stand: s counts them in the order of computation.
class Order {
 public:
  Order(const LstmShape& shape, const LstmArguments& arguments)
      : last_(shape.time - 1),
        batch_stride_(arguments.time_major ? 1 : shape.time),
        time_stride_(arguments.time_major ? shape.batch : 1),
        mask_(arguments.mask),
        backwards_(arguments.go_backwards) {}

  // The row of the input that timestep s reads, and the row of the outputs that it writes.
  int64_t Row(int64_t b, int64_t s) const { return OutputRow(b, backwards_ ? last_ - s : s); }
  int64_t OutputRow(int64_t b, int64_t s) const { return b * batch_stride_ + s * time_stride_; }
  // Rows from one member of the batch to the next.
  int64_t batch_stride() const { return batch_stride_; }
  bool Masked(int64_t b, int64_t s) const { return mask_ != nullptr && !mask_[Row(b, s)]; }

 private:
  const int64_t last_, batch_stride_, time_stride_;
  const bool* const mask_;
  const bool backwards_;
};

// Memory of the forward pass.
struct ForwardMemory {
  ForwardMemory(const LstmShape& shape, float* memory) {
    const auto take = [&](int64_t count) {
      float* part = memory == nullptr ? nullptr : memory + size;
      size += count;
      return part;
    };
    kernel = take(shape.blocks() * shape.features * kPanelColumns);
    recurrent = take(shape.blocks() * shape.units * kPanelColumns);
    bias = take(shape.blocks() * kPanelColumns);
    cell = take(shape.batch * shape.padded_units());
    for (float*& state : hidden) state = take(shape.batch * shape.padded_units());
  }
  int64_t size = 0;
  float *kernel, *recurrent, *bias;  // packed
  float* cell;                       // the initial state
  float* hidden[2];                  // the states before and after a timestep, by turns
};

void ForwardStep(const LstmShape& shape, const LstmArguments& arguments, const ForwardMemory& memory,
                 int64_t s, int64_t block, int64_t first, int64_t end, LstmResults* results,
                 Records* records) {
  const LstmRowKernels& kernels = LstmKernels();
  const Order order(shape, arguments);
  const int64_t padded = shape.padded_units(), unit = block * kLanes, count = shape.units - unit;
  const float* before = memory.hidden[s % 2];
  float* after = memory.hidden[(s + 1) % 2];
  LstmRecord record;
  std::fill_n(record.cell_min, kLanes, kInfinity);
  std::fill_n(record.hidden_min, kLanes, kInfinity);
  std::fill_n(record.cell_max, kLanes, -kInfinity);
  std::fill_n(record.hidden_max, kLanes, -kInfinity);
  alignas(64) float sums[kGroupRows * kPanelColumns];
  for (int64_t group = first; group < end; group += kGroupRows) {
    const int64_t rows = std::min(kGroupRows, end - group);
    MultiplyPanel(rows, kPanelColumns, shape.units, {before + group * padded, padded, 1},
                  memory.recurrent + block * shape.units * kPanelColumns, sums, kPanelColumns,
                  /*continues=*/false);
    for (int64_t b = group; b < group + rows; ++b) {
      float* kept = results->kept + order.Row(b, s) * shape.kept_row() + block * kKeptBlock;
      const float* cell_before =
          s == 0 ? memory.cell + b * padded + unit
                 : results->kept + order.Row(b, s - 1) * shape.kept_row() + block * kKeptBlock + 4 * kLanes;
      float* hidden = after + b * padded + unit;
      float* output = results->outputs + order.OutputRow(b, s) * shape.units + unit;
      if (order.Masked(b, s)) {
        std::copy_n(cell_before, kLanes, kept + 4 * kLanes);
        std::copy_n(before + b * padded + unit, kLanes, hidden);
        if (s == 0) {
          std::fill_n(output, std::min(count, kLanes), 0.0f);
        } else {
          StoreLanes(results->outputs + order.OutputRow(b, s - 1) * shape.units + unit, count, output);
        }
        continue;
      }
      kernels.forward(arguments.cell_grid, arguments.hidden_grid, sums + (b - group) * kPanelColumns,
                      memory.bias + block * kPanelColumns, cell_before, kept, hidden, &record);
      StoreLanes(hidden, count, output);
    }
  }
  for (int64_t lane = 0; lane < std::min(count, kLanes); ++lane) {
    Merge(&records->cell, record.cell_min[lane], record.cell_max[lane]);
    Merge(&records->hidden, record.hidden_min[lane], record.hidden_max[lane]);
  }
}

// Memory of the backward pass.
struct BackwardMemory {
  BackwardMemory(const LstmShape& shape, float* memory) {
    const auto take = [&](int64_t count) {
      float* part = memory == nullptr ? nullptr : memory + size;
      size += count;
      return part;
    };
    recurrent = take(PackedSize(shape.units, shape.gates()));
    for (float** state : {&cell, &cell_slope, &hidden_slope, &output_slope}) {
      *state = take(shape.batch * shape.padded_units());
    }
    hidden_before = take(shape.rows() * shape.units);
    x = take(shape.rows() * shape.features);
  }
  int64_t size = 0;
  float* recurrent;  // transposed and packed
  float* cell;       // the initial state
  // What has arrived so far at the states, and, where timesteps are masked, at the output that they repeat.
  float *cell_slope, *hidden_slope, *output_slope;
  // Transposed: the hidden state that each timestep started from [units, rows], and x [features, rows].
  float *hidden_before, *x;
};

void BackwardStep(const LstmShape& shape, const LstmArguments& arguments, const BackwardMemory& memory,
                  const float* kept, const LstmOutputSlopes& slopes, const LstmGradients& gradients,
                  int64_t s, int64_t panel, int64_t first, int64_t end) {
  const LstmRowKernels& kernels = LstmKernels();
  const Order order(shape, arguments);
  const int64_t padded = shape.padded_units(), gates = shape.gates();
  const int64_t first_block = panel * kBlocksPerPanel;
  const int64_t end_block = std::min(shape.blocks(), first_block + kBlocksPerPanel);
  alignas(64) float sums[kGroupRows * kPanelColumns];
  for (int64_t group = first; group < end; group += kGroupRows) {
    const int64_t rows = std::min(kGroupRows, end - group);
    if (s + 1 < shape.time) {
      MultiplyPanel(rows, kPanelColumns, gates,
                    {gradients.sums + order.Row(group, s + 1) * gates, order.batch_stride() * gates, 1},
                    memory.recurrent + panel * gates * kPanelColumns, sums, kPanelColumns,
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
        float output_slope[kLanes], to_sums[kGates * kLanes] = {};
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
        if (!order.Masked(b, s)) {
          for (int64_t lane = 0; lane < kLanes; ++lane) {
            arriving[lane] += output_slope[lane];
            hidden_slope[lane] = 0.0f;
          }
          const float* kept_block = kept + row * shape.kept_row() + block * kKeptBlock;
          const float* cell_before =
              s == 0 ? memory.cell + b * padded + unit
                     : kept + order.Row(b, s - 1) * shape.kept_row() + block * kKeptBlock + 4 * kLanes;
          kernels.backward(arguments.cell_grid, arguments.hidden_grid, kept_block, cell_before, arriving,
                           cell_slope, to_sums);
        }
        for (int64_t gate = 0; gate < kGates; ++gate) {
          StoreLanes(to_sums + gate * kLanes, count,
                     gradients.sums + row * gates + gate * shape.units + unit);
        }
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
  const Order order(shape, arguments);
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
                     const BackwardMemory& memory, const LstmGradients& gradients, const Parallel& parallel) {
  const int64_t rows = shape.rows(), gates = shape.gates();
  const std::vector<const float*> before = HiddenBefore(shape, arguments, outputs);
  Transpose(rows, shape.units, [&](int64_t row) { return before[row]; }, memory.hidden_before, parallel);
  Transpose(
      rows, shape.features, [&](int64_t row) { return arguments.x + row * shape.features; }, memory.x,
      parallel);
  const int64_t cost = rows * (shape.features + shape.units) * kPanelColumns / 16;
  parallel.ForEach(Panels(gates), cost, [&](int64_t index) {
    const int64_t column = index * kPanelColumns, width = std::min<int64_t>(kPanelColumns, gates - column);
    alignas(64) float panel[kGradientDepth * kPanelColumns];
    float bias[kPanelColumns] = {};
    for (int64_t row = 0; row == 0 || row < rows; row += kGradientDepth) {
      const int64_t depth = std::min(kGradientDepth, rows - row);
      PackPanel(index, gates, depth, {gradients.sums + row * gates, 1, gates}, panel);
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t j = 0; j < kPanelColumns; ++j) bias[j] += panel[k * kPanelColumns + j];
      }
      MultiplyPanel(shape.features, width, depth, {memory.x + row, rows, 1}, panel, gradients.kernel + column,
                    gates, /*continues=*/row > 0);
      MultiplyPanel(shape.units, width, depth, {memory.hidden_before + row, rows, 1}, panel,
                    gradients.recurrent + column, gates, /*continues=*/row > 0);
    }
    std::copy_n(bias, width, gradients.bias + column);
  });
}

}  // namespace

StateGrid MakeStateGrid(const Grid& grid) {
  return {grid.nudged_min, grid.nudged_max, grid.scale,    grid.scale == 0.0f ? 1.0f : grid.scale,
          grid.zero_level, grid.grad_min,   grid.grad_max, grid.passthrough ? 1.0f : 0.0f};
}

int64_t LstmForwardWorkspace(const LstmShape& shape) { return ForwardMemory(shape, nullptr).size; }

void LstmForward(const LstmShape& shape, const LstmArguments& arguments, LstmResults* results,
                 float* workspace, const Parallel& parallel) {
  const ForwardMemory memory(shape, workspace);
  PackGates(shape, arguments.kernel, shape.features, memory.kernel, parallel);
  PackGates(shape, arguments.recurrent, shape.units, memory.recurrent, parallel);
  std::fill_n(memory.bias, shape.blocks() * kPanelColumns, 0.0f);
  if (arguments.bias != nullptr) PackGates(shape, arguments.bias, 1, memory.bias, parallel);
  PadRows(shape, arguments.cell, memory.cell);
  PadRows(shape, arguments.hidden, memory.hidden[0]);

  // The input's share of all sums.
  const int64_t chunks = (shape.rows() + kProjectedRows - 1) / kProjectedRows;
  const int64_t chunk_cost = std::min(shape.rows(), kProjectedRows) * shape.features * kPanelColumns / 16;
  parallel.ForEach(shape.blocks() * chunks, chunk_cost, [&](int64_t task) {
    const int64_t block = task / chunks, row = task % chunks * kProjectedRows;
    MultiplyPanel(std::min(kProjectedRows, shape.rows() - row), kPanelColumns, shape.features,
                  {arguments.x + row * shape.features, shape.features, 1},
                  memory.kernel + block * shape.features * kPanelColumns,
                  results->kept + row * shape.kept_row() + block * kKeptBlock, shape.kept_row(),
                  /*continues=*/false);
  });

  const Division division(shape, parallel.threads);
  std::vector<Records> records(division.tasks(shape, shape.blocks()));
  const int64_t cost = kLanes * (shape.units * kGates / 16 + kCellCost);
  division.Run(shape, shape.blocks(), cost, 0, shape.time, 1, parallel,
               [&](int64_t task, int64_t s, int64_t block, int64_t first, int64_t end) {
                 ForwardStep(shape, arguments, memory, s, block, first, end, results, &records[task]);
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
  const Order order(shape, arguments);
  for (int64_t b = 0; b < shape.batch; ++b) {
    std::copy_n(memory.hidden[shape.time % 2] + b * shape.padded_units(), shape.units,
                results->hidden + b * shape.units);
    for (int64_t block = 0; block < shape.blocks(); ++block) {
      const int64_t unit = block * kLanes;
      const float* cell = shape.time == 0 ? memory.cell + b * shape.padded_units() + unit
                                          : results->kept + order.Row(b, shape.time - 1) * shape.kept_row() +
                                                block * kKeptBlock + 4 * kLanes;
      StoreLanes(cell, shape.units - unit, results->cell + b * shape.units + unit);
    }
  }
}

int64_t LstmBackwardWorkspace(const LstmShape& shape) { return BackwardMemory(shape, nullptr).size; }

void LstmBackward(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
                  const float* kept, const LstmOutputSlopes& slopes, const LstmGradients& gradients,
                  float* workspace, const Parallel& parallel) {
  const BackwardMemory memory(shape, workspace);
  const int64_t gates = shape.gates();
  Pack(shape.units, gates, {arguments.recurrent, gates, 1}, memory.recurrent, parallel);
  PadRows(shape, arguments.cell, memory.cell);
  PadRows(shape, slopes.cell, memory.cell_slope);
  PadRows(shape, slopes.hidden, memory.hidden_slope);
  std::fill_n(memory.output_slope, shape.batch * shape.padded_units(), 0.0f);
  const Division division(shape, parallel.threads);
  const int64_t cost = kPanelColumns * (gates / 16 + 2 * kCellCost);
  // The step before the first one only takes the gradient to the initial states.
  division.Run(shape, Panels(shape.units), cost, shape.time - 1, -2, -1, parallel,
               [&](int64_t, int64_t s, int64_t panel, int64_t first, int64_t end) {
                 BackwardStep(shape, arguments, memory, kept, slopes, gradients, s, panel, first, end);
               });
  WeightGradients(shape, arguments, outputs, memory, gradients, parallel);
}

}  // namespace dqat::core
