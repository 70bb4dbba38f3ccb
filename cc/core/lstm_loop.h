// What the LSTM's forward and backward pass share: where rows stand, and how threads divide a time loop. Only
// lstm_*.cc of the two passes and of their products include this.
#ifndef DQAT_CORE_LSTM_LOOP_H_
#define DQAT_CORE_LSTM_LOOP_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/instruction_set.h"
#include "core/lstm.h"
#include "core/lstm_tables.h"
#include "core/products.h"

namespace dqat::core {

constexpr int64_t kLanes = kUnitLanes;
constexpr int64_t kGates = 4;
// Rows whose sums are held at a time: within the first-level cache.
constexpr int64_t kGroupRows = 48;
// Each thread takes some rows through the whole sequence where it gets enough of them to make use of the
// weights that it reads, or where the recurrent weights fit into every core's second-level cache. Otherwise
// threads divide the units, and meet after each timestep, which costs much where other programs want the
// cores too.
constexpr int64_t kRowsPerThread = 12;
// Tasks of a thread where they share the weights: a thread that comes late finds one that nobody has begun.
constexpr int64_t kTasksPerThread = 4, kLeastRows = 4;
constexpr int64_t kSharedWeightBytes = 1 << 20;
constexpr int64_t kCellCost = 8;  // cycles for a unit, about; a product's multiply-adds are 16 a cycle

inline const LstmRowKernels& LstmKernels() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  const char* name = InstructionSet();
  if (std::strcmp(name, "avx512") == 0) return avx512::kLstmRowKernels;
  if (std::strcmp(name, "avx2") == 0) return avx2::kLstmRowKernels;
#endif
  return baseline::kLstmRowKernels;
}

// The cell of a timestep, in the arithmetic that its arguments ask for.
class CellKernels {
 public:
  explicit CellKernels(const LstmArguments& arguments)
      : kernels_(LstmKernels()),
        cell_grid_(arguments.cell_grid),
        hidden_grid_(arguments.hidden_grid),
        rounding_(MakeLstmRounding(arguments.scales, hidden_grid_, cell_grid_)) {
    if (rounding_.is_integer) tables_ = LstmTablesFor(rounding_.cell_exponent);
  }

  // See LstmRowKernels.
  void Forward(int64_t count, const LstmCell* cells, const float* bias, int64_t stride,
               LstmRecord* record) const {
    if (rounding_.is_integer) {
      kernels_.integer_forward(cell_grid_, hidden_grid_, rounding_, tables_, count, cells, bias, stride,
                               record);
    } else {
      kernels_.forward(cell_grid_, hidden_grid_, count, cells, bias, stride, record);
    }
  }

  void Backward(const float* gates, int64_t stride, const float* cell_before, const float* cell,
                const float* hidden_slope, float* cell_slope, float* sums, int64_t sums_stride) const {
    if (rounding_.is_integer) {
      kernels_.integer_backward(cell_grid_, hidden_grid_, rounding_, tables_, gates, stride, cell_before,
                                cell, hidden_slope, cell_slope, sums, sums_stride);
    } else {
      kernels_.backward(cell_grid_, hidden_grid_, gates, stride, cell_before, cell, hidden_slope, cell_slope,
                        sums, sums_stride);
    }
  }

  const LstmRounding& rounding() const { return rounding_; }

 private:
  const LstmRowKernels& kernels_;
  const StateGrid cell_grid_, hidden_grid_;
  const LstmRounding rounding_;
  LstmTables tables_ = {};
};

// Whole blocks. memcpy, unlike std::copy_n, becomes a few instructions.
inline void CopyLanes(const float* source, float* target) {
  std::memcpy(target, source, kLanes * sizeof(float));
}

// `count` values, then zeros.
inline void LoadLanes(const float* source, int64_t count, float* lanes) {
  if (count >= kLanes) {
    CopyLanes(source, lanes);
  } else {
    std::fill_n(std::copy_n(source, count, lanes), kLanes - count, 0.0f);
  }
}

inline void StoreLanes(const float* lanes, int64_t count, float* target) {
  if (count >= kLanes) {
    CopyLanes(lanes, target);
  } else {
    std::copy_n(lanes, count, target);
  }
}

// The four gates of a block of units in a row of [4, units], where the block is cut short: to a copy [4, 16]
// with room for whole vectors, and back.
inline void LoadGates(const float* gates, int64_t units, int64_t count, float* copy) {
  for (int64_t gate = 0; gate < kGates; ++gate) {
    LoadLanes(gates + gate * units, count, copy + gate * kLanes);
  }
}

inline void StoreGates(const float* copy, int64_t units, int64_t count, float* gates) {
  for (int64_t gate = 0; gate < kGates; ++gate) {
    StoreLanes(copy + gate * kLanes, count, gates + gate * units);
  }
}

// Rows of `units` values, padded to whole blocks.
inline void PadRows(const LstmShape& shape, const float* source, float* padded) {
  for (int64_t row = 0; row < shape.batch; ++row) {
    float* end = std::copy_n(source + row * shape.units, shape.units, padded + row * shape.padded_units());
    std::fill_n(end, shape.padded_units() - shape.units, 0.0f);
  }
}

// Whether a core's second-level cache has room for all recurrent weights.
inline bool SharesWeights(const LstmShape& shape) {
  return static_cast<int64_t>(sizeof(float)) * shape.gates() * shape.units <= kSharedWeightBytes;
}

// How the work of a time loop is divided.
class Division {
 public:
  Division(const LstmShape& shape, int threads)
      : by_rows_(threads == 1 || shape.batch >= kRowsPerThread * threads || SharesWeights(shape)),
        rows_(by_rows_ ? Rows(shape, threads) : shape.batch) {}

  // Whether a task is some rows, through all timesteps, and not a column block of one.
  bool by_rows() const { return by_rows_; }

  // Calls begin(first row, end of rows), by rows only, and then work(task, timestep, column block, first row,
  // end of rows) for all timesteps in the given order, a timestep's after all of those before it that touch
  // the same rows. `task` is less than tasks().
  template <typename Begin, typename Work>
  void Run(const LstmShape& shape, int64_t blocks, int64_t block_cost, int64_t first, int64_t end,
           int64_t step, const Parallel& parallel, Begin begin, Work work) const {
    if (shape.batch == 0) return;  // however many timesteps an empty tensor claims to have
    if (by_rows_) {
      const int64_t cost = (end - first) * step * blocks * block_cost * rows_;
      parallel.ForEach(tasks(shape, blocks), cost, [&](int64_t task) {
        const int64_t row = task * rows_, last = std::min(shape.batch, row + rows_);
        begin(row, last);
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
  static int64_t Rows(const LstmShape& shape, int64_t threads) {
    const int64_t tasks = threads > 1 && SharesWeights(shape) ? threads * kTasksPerThread : threads;
    return std::max(kLeastRows, (shape.batch + tasks - 1) / tasks);
  }

  const bool by_rows_;
  const int64_t rows_;
};

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_LOOP_H_
