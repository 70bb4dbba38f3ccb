// What the CUDA kernels of the LSTM do, and in which order they are launched; see cuda_work.h for `Block`.
//
// A timestep is one kernel: a product with the recurrent weights and, on its sums while they are in
// registers, the cell of lstm_element.h. The results are those of lstm.h, to the bit where the CPU has fused
// multiply-adds. `Launcher` has
//   Run(tasks, work)               work.Run(block, task, memory) for each task
//   Copy(count, source, target), Clear(count, target)
#ifndef DQAT_CORE_CUDA_LSTM_WORK_H_
#define DQAT_CORE_CUDA_LSTM_WORK_H_

#include <cstdint>

#include "core/cuda_product_work.h"
#include "core/cuda_work.h"
#include "core/lstm.h"

namespace dqat::core::cuda {

struct NoMemory {};

// What both directions are given, in device memory. The grids of `arguments` are not used: an invalid range
// has a grid of NaN, see Ranges.
struct LstmCase {
  LstmShape shape;
  LstmArguments arguments;
  Ranges hidden, cell;

  DQAT_HOST_DEVICE StateGrid HiddenGrid() const { return MakeStateGrid(hidden.MakeGridOrNan(0)); }
  DQAT_HOST_DEVICE StateGrid CellGrid() const { return MakeStateGrid(cell.MakeGridOrNan(0)); }
  DQAT_HOST_DEVICE LstmRounding Rounding() const {
    return MakeLstmRounding(arguments.scales, HiddenGrid(), CellGrid());
  }
  DQAT_HOST_DEVICE TimeOrder order() const { return TimeOrder(shape, arguments); }
  int64_t states() const { return shape.batch * shape.units; }
};

// With whole numbers in place of floats where `codes` of them are a unit; sums of their products are exact as
// far as 2^24. 0: as they are.
DQAT_HOST_DEVICE inline float Coded(float value, float codes) {
  return codes == 0.0f ? value : rintf(value * codes);
}

struct CodedRows {
  TileOperand rows;
  float codes;

  DQAT_HOST_DEVICE bool by_depth() const { return rows.by_depth(); }
  DQAT_HOST_DEVICE float Get(int r, int64_t k) const { return Coded(rows.Get(r, k), codes); }
};

// Columns of [depth, 4 units].
struct KernelOperand {
  const float* kernel;
  int64_t units, first;
  const float* codes;  // by gate

  DQAT_HOST_DEVICE bool by_depth() const { return false; }
  DQAT_HOST_DEVICE float Get(int j, int64_t k) const {
    const int64_t column = first + j;
    return column < 4 * units ? Coded(kernel[k * 4 * units + column], codes[column / units]) : 0.0f;
  }
};

// The four gates of 16 units are the 64 columns of a tile.
struct GateOperand {
  const float* recurrent;  // from the first of the units on
  int64_t units, count;    // of all units; of those from there on
  const float* codes;      // by gate

  DQAT_HOST_DEVICE bool by_depth() const { return false; }
  DQAT_HOST_DEVICE float Get(int j, int64_t k) const {
    const int unit = j % kTileSide, gate = j / kTileSide;
    return unit < count ? Coded(recurrent[(k * 4 + gate) * units + unit], codes[gate]) : 0.0f;
  }
};

// The inputs' share of all timesteps' sums. A task is a tile.
struct LstmInputsWork {
  static constexpr int kRows = 4;
  static constexpr int64_t kHeight = kTileSide * kRows;
  using Memory = TileMemory<kRows>;

  LstmCase given;
  float* gates;

  DQAT_HOST_DEVICE int64_t ColumnTiles() const {
    return (given.shape.gates() + kTileColumns - 1) / kTileColumns;
  }
  int64_t Tasks() const { return (given.shape.rows() + kHeight - 1) / kHeight * ColumnTiles(); }

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t task, Memory& memory) const {
    const LstmShape& shape = given.shape;
    const LstmArguments& arguments = given.arguments;
    const int64_t row = task / ColumnTiles() * kHeight, column = task % ColumnTiles() * kTileColumns;
    const LstmRounding rounding = given.Rounding();
    const CodedRows left = {{arguments.x + row * shape.features, shape.features, 1, shape.rows() - row},
                            rounding.is_integer ? rounding.x_codes : 0.0f};
    const LstmRounding none = {};
    const KernelOperand right = {arguments.kernel, shape.units, column,
                                 (rounding.is_integer ? rounding : none).kernel_codes};
    typename Block::template PerThread<TileSums<kRows>> sums;
    MultiplyTile<kRows>(block, shape.features, left, right, memory, sums);
    block.ForEachThread([&](int thread) {
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < 4; ++j) {
          const int64_t r = row + thread / kTileSide + kTileSide * i;
          const int64_t c = column + thread % kTileSide + kTileSide * j;
          if (r < shape.rows() && c < shape.gates()) {
            const float factor = rounding.is_integer ? rounding.input_factors[c / shape.units] : 1.0f;
            gates[r * shape.gates() + c] = sums[thread].at[i][j] * factor;
          }
        }
      }
    });
  }
};

// Rows of a tile of both directions: few, so that there are more blocks.
constexpr int kStepRows = 2;
constexpr int64_t kStepHeight = kTileSide * kStepRows;
inline int64_t StepTasks(const LstmShape& shape, int64_t units) {
  return (shape.batch + kStepHeight - 1) / kStepHeight * ((shape.units + units - 1) / units);
}

struct LstmForwardStep {
  using Memory = TileMemory<kStepRows>;

  LstmCase given;
  float *outputs, *gates, *cells;
  const float *hidden_before, *cell_before;  // [batch, units]
  float *hidden_after, *cell_after;          // the cell state may stand where the one before stands
  Pairs cell_records, hidden_records;        // one of each for a task, merged over the timesteps
  int64_t s;

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t task, Memory& memory) const {
    const LstmShape& shape = given.shape;
    const int64_t tiles = (shape.units + kTileSide - 1) / kTileSide;
    const int64_t row = task / tiles * kStepHeight, unit = task % tiles * kTileSide;
    const LstmRounding rounding = given.Rounding(), none = {};
    const CodedRows left = {{hidden_before + row * shape.units, shape.units, 1, shape.batch - row},
                            rounding.is_integer ? rounding.hidden_codes : 0.0f};
    const GateOperand right = {given.arguments.recurrent + unit, shape.units, shape.units - unit,
                               (rounding.is_integer ? rounding : none).recurrent_codes};
    typename Block::template PerThread<TileSums<kStepRows>> sums;
    MultiplyTile<kStepRows>(block, shape.units, left, right, memory, sums);
    typename Block::template PerThread<Pair> cell_found, hidden_found;
    block.ForEachThread([&](int thread) {
      cell_found[thread] = hidden_found[thread] = MergeRecord::Identity();
      const int64_t u = unit + thread % kTileSide;
      for (int i = 0; i < kStepRows; ++i) {
        const int64_t b = row + thread / kTileSide + kTileSide * i;
        if (b < shape.batch && u < shape.units) {
          Cell(b, u, rounding, sums[thread].at[i], &cell_found[thread], &hidden_found[thread]);
        }
      }
    });
    Record(block, task, cell_found, cell_records);
    Record(block, task, hidden_found, hidden_records);
  }

 private:
  template <typename Block>
  DQAT_HOST_DEVICE void Record(Block& block, int64_t task, typename Block::template PerThread<Pair>& found,
                               const Pairs& records) const {
    const Pair all = block.Reduce(found, MergeRecord());
    block.ForEachThread([&](int thread) {
      if (thread == 0) records.Set(task, s == 0 ? all : MergeRecord()(records.Get(task), all));
    });
  }

  DQAT_HOST_DEVICE void Cell(int64_t b, int64_t u, const LstmRounding& rounding, const float* products,
                             Pair* cell_found, Pair* hidden_found) const {
    const TimeOrder order = given.order();
    const int64_t units = given.shape.units, state = b * units + u, row = order.Row(b, s);
    float* output = outputs + order.OutputRow(b, s) * units + u;
    if (order.Masked(b, s)) {
      hidden_after[state] = hidden_before[state];
      cells[row * units + u] = cell_after[state] = cell_before[state];
      *output = s == 0 ? 0.0f : outputs[order.OutputRow(b, s - 1) * units + u];
      return;
    }
    float* gate = gates + row * 4 * units + u;
    const float* bias = given.arguments.bias;
    float input[4], recurrent[4];
    for (int i = 0; i < 4; ++i) {
      input[i] = gate[i * units] + (bias == nullptr ? 0.0f : bias[i * units + u]);
      recurrent[i] = products[i] * (rounding.is_integer ? rounding.hidden_factors[i] : 1.0f);
    }
    const LstmGates from_input = {input[0], input[1], input[2], input[3]};
    const LstmGates from_hidden = {recurrent[0], recurrent[1], recurrent[2], recurrent[3]};
    const LstmGates sums = {input[0] + recurrent[0], input[1] + recurrent[1], input[2] + recurrent[2],
                            input[3] + recurrent[3]};
    const float before = cell_before[state];
    const LstmOutcome result = rounding.is_integer
                                   ? IntegerLstmForward(from_input, from_hidden, before, given.CellGrid(),
                                                        given.HiddenGrid(), rounding)
                                   : LstmForward(sums, before, given.CellGrid(), given.HiddenGrid());
    gate[0] = result.gates.i;
    gate[units] = result.gates.f;
    gate[2 * units] = result.gates.g;
    gate[3 * units] = result.gates.o;
    cells[row * units + u] = cell_after[state] = result.cell;
    *output = hidden_after[state] = result.hidden;
    *cell_found = MergeRecord()(*cell_found, {RecordMin(result.cell_value), RecordMax(result.cell_value)});
    *hidden_found =
        MergeRecord()(*hidden_found, {RecordMin(result.hidden_value), RecordMax(result.hidden_value)});
  }
};

// Each task merges `count` records that follow each other.
struct MergeRecordsWork {
  using Memory = NoMemory;

  Pairs records;
  int64_t count;
  Pairs results;

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t task, Memory&) const {
    typename Block::template PerThread<Pair> found;
    block.ForEachThread([&](int thread) {
      Pair mine = MergeRecord::Identity();
      for (int64_t i = thread; i < count; i += Plan::kThreads) {
        mine = MergeRecord()(mine, records.Get(task * count + i));
      }
      found[thread] = mine;
    });
    const Pair all = block.Reduce(found, MergeRecord());
    block.ForEachThread([&](int thread) {
      if (thread == 0) results.Set(task, MergeRecord::Finish(all));
    });
  }
};

struct CudaLstmResults {
  float *outputs, *hidden, *cell, *gates, *cells;
  Pairs hidden_record, cell_record;
};

inline int64_t LstmForwardScratch(const LstmShape& shape) {
  return shape.batch * shape.units + 4 * StepTasks(shape, kTileSide);
}

template <typename Launcher>
void RunLstmForward(const LstmCase& given, const CudaLstmResults& results, float* scratch,
                    Launcher& launcher) {
  const LstmShape& shape = given.shape;
  const LstmArguments& arguments = given.arguments;
  const int64_t states = given.states(), tasks = StepTasks(shape, kTileSide);
  const LstmInputsWork inputs = {given, results.gates};
  launcher.Run(inputs.Tasks(), inputs);
  if (shape.time == 0) {
    launcher.Copy(states, arguments.hidden, results.hidden);
    launcher.Copy(states, arguments.cell, results.cell);
  }
  float* partials = scratch + states;
  const Pairs cell_records = {partials, partials + tasks};
  const Pairs hidden_records = {partials + 2 * tasks, partials + 3 * tasks};
  const float *hidden = arguments.hidden, *cell = arguments.cell;
  for (int64_t s = 0; s < shape.time; ++s) {
    // By turns, so that the last one is the result.
    float* after = (shape.time - s) % 2 == 1 ? results.hidden : scratch;
    launcher.Run(tasks, LstmForwardStep{given, results.outputs, results.gates, results.cells, hidden, cell,
                                        after, results.cell, cell_records, hidden_records, s});
    hidden = after;
    cell = results.cell;
  }
  const int64_t records = shape.time == 0 ? 0 : tasks;
  launcher.Run(1, MergeRecordsWork{cell_records, records, results.cell_record});
  launcher.Run(1, MergeRecordsWork{hidden_records, records, results.hidden_record});
}

// What has arrived so far at the states, and, where timesteps are masked, at the output that they repeat:
// [batch, units].
struct ArrivingSlopes {
  float *cell, *hidden, *output;
};

struct LstmBackwardStep {
  using Memory = TileMemory<kStepRows>;

  LstmCase given;
  LstmKept kept;
  const float* output_slopes;
  ArrivingSlopes arriving;
  LstmGradients gradients;
  int64_t s;  // -1 only takes the gradient to the initial states

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t task, Memory& memory) const {
    const LstmShape& shape = given.shape;
    const TimeOrder order = given.order();
    const int64_t tiles = (shape.units + kTileColumns - 1) / kTileColumns, gates = shape.gates();
    const int64_t row = task / tiles * kStepHeight, unit = task % tiles * kTileColumns;
    const bool is_last = s + 1 == shape.time;
    const float* later = is_last ? nullptr : gradients.sums + order.Row(row, s + 1) * gates;
    const TileOperand left = {later, order.batch_stride() * gates, 1, shape.batch - row};
    const TileOperand right = {given.arguments.recurrent + unit * gates, gates, 1, shape.units - unit};
    typename Block::template PerThread<TileSums<kStepRows>> sums;
    MultiplyTile<kStepRows>(block, is_last ? 0 : gates, left, right, memory, sums);
    block.ForEachThread([&](int thread) {
      for (int i = 0; i < kStepRows; ++i) {
        for (int j = 0; j < 4; ++j) {
          const int64_t b = row + thread / kTileSide + kTileSide * i;
          const int64_t u = unit + thread % kTileSide + kTileSide * j;
          if (b < shape.batch && u < shape.units) Cell(b, u, sums[thread].at[i][j]);
        }
      }
    });
  }

 private:
  DQAT_HOST_DEVICE void Cell(int64_t b, int64_t u, float sum) const {
    const TimeOrder order = given.order();
    const int64_t units = given.shape.units, state = b * units + u, row = order.Row(b, s < 0 ? 0 : s);
    float hidden_slope = sum + arriving.hidden[state];
    if (s < 0) {
      gradients.hidden[state] = hidden_slope;
      gradients.cell[state] = arriving.cell[state];
      return;
    }
    const bool masked = order.Masked(b, s);
    float output_slope = output_slopes[order.OutputRow(b, s) * units + u];
    if (given.arguments.mask != nullptr) {
      output_slope += arriving.output[state];
      arriving.output[state] = masked ? output_slope : 0.0f;
    }
    float* to_sums = gradients.sums + row * 4 * units + u;
    if (masked) {
      arriving.hidden[state] = hidden_slope;
      for (int gate = 0; gate < 4; ++gate) to_sums[gate * units] = 0.0f;
      return;
    }
    arriving.hidden[state] = 0.0f;
    hidden_slope += output_slope;
    const float* gate = kept.gates + row * 4 * units + u;
    const float cell_before =
        s == 0 ? given.arguments.cell[state] : kept.cells[order.Row(b, s - 1) * units + u];
    const LstmGates gates_kept = {gate[0], gate[units], gate[2 * units], gate[3 * units]};
    const LstmRounding rounding = given.Rounding();
    const LstmGates gates = GatesOf(gates_kept);
    const float cell = kept.cells[row * units + u];
    float tanh_cell = 0.0f, cell_sum = 0.0f;
    if (rounding.is_integer) {
      const int16_t code = (int16_t)CellCode(cell, rounding);
      tanh_cell = TanhOf(FixedPointTanh(code, 15 + rounding.cell_exponent) * kQ15, cell);
      cell_sum = RoundedCellSum(gates, cell_before, rounding);
    } else {
      tanh_cell = Tanh(cell);
      cell_sum = CellSum(gates, cell_before);
    }
    const LstmSlopes slopes = LstmBackward(gates_kept, cell_before, tanh_cell, cell_sum, arriving.cell[state],
                                           hidden_slope, given.CellGrid(), given.HiddenGrid());
    to_sums[0] = slopes.sums.i;
    to_sums[units] = slopes.sums.f;
    to_sums[2 * units] = slopes.sums.g;
    to_sums[3 * units] = slopes.sums.o;
    arriving.cell[state] = slopes.cell;
  }
};

// For each row of the input the hidden state that its timestep started from [rows, units]. A task is a
// member of the batch.
struct HiddenBeforeWork {
  using Memory = NoMemory;

  LstmCase given;
  const float* outputs;
  float* before;

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t b, Memory&) const {
    const TimeOrder order = given.order();
    const int64_t units = given.shape.units;
    block.ForEachThread([&](int thread) {
      for (int64_t u = thread; u < units; u += Plan::kThreads) {
        float state = given.arguments.hidden[b * units + u];
        for (int64_t s = 0; s < given.shape.time; ++s) {
          before[order.Row(b, s) * units + u] = state;
          if (!order.Masked(b, s)) state = outputs[order.OutputRow(b, s) * units + u];
        }
      }
    });
  }
};

// The sums of a matrix's columns, in the order of its rows. A task is 256 columns.
struct ColumnSumsWork {
  using Memory = NoMemory;

  int64_t rows, columns;
  const float* matrix;
  float* sums;

  int64_t Tasks() const { return (columns + Plan::kThreads - 1) / Plan::kThreads; }

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t task, Memory&) const {
    block.ForEachThread([&](int thread) {
      const int64_t column = task * Plan::kThreads + thread;
      if (column >= columns) return;
      float sum = 0.0f;
      for (int64_t row = 0; row < rows; ++row) sum += matrix[row * columns + column];
      sums[column] = sum;
    });
  }
};

inline int64_t LstmBackwardScratch(const LstmShape& shape) {
  return (3 * shape.batch + shape.rows()) * shape.units;
}

template <typename Launcher>
void RunLstmBackward(const LstmCase& given, const float* outputs, const LstmKept& kept,
                     const LstmOutputSlopes& slopes, const LstmGradients& gradients, float* scratch,
                     Launcher& launcher) {
  const LstmShape& shape = given.shape;
  const int64_t states = given.states(), gates = shape.gates();
  const ArrivingSlopes arriving = {scratch, scratch + states, scratch + 2 * states};
  float* before = scratch + 3 * states;
  launcher.Copy(states, slopes.cell, arriving.cell);
  launcher.Copy(states, slopes.hidden, arriving.hidden);
  launcher.Clear(states, arriving.output);
  const int64_t tasks = StepTasks(shape, kTileColumns);
  for (int64_t s = shape.time - 1; s >= -1; --s) {
    launcher.Run(tasks, LstmBackwardStep{given, kept, slopes.outputs, arriving, gradients, s});
  }
  launcher.Run(shape.time == 0 ? 0 : shape.batch, HiddenBeforeWork{given, outputs, before});
  const TileOperand sums = {gradients.sums, 1, gates, gates};
  const ProductWork to_kernel = {
      {given.arguments.x, 1, shape.features, shape.features}, sums, shape.rows(), gradients.kernel};
  launcher.Run(to_kernel.Tasks(), to_kernel);
  const ProductWork to_recurrent = {
      {before, 1, shape.units, shape.units}, sums, shape.rows(), gradients.recurrent};
  launcher.Run(to_recurrent.Tasks(), to_recurrent);
  const ColumnSumsWork to_bias = {shape.rows(), gates, gradients.sums, gradients.bias};
  launcher.Run(to_bias.Tasks(), to_bias);
}

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_LSTM_WORK_H_
