#include "core/lstm_weight_gradients.h"

#include <algorithm>

#include "core/lstm_loop.h"

namespace dqat::core {
namespace {

// Rows that are added up at a time, of as many as are gathered beforehand: a panel of so many stays in the
// second-level cache, and results are read and written seldom.
constexpr int64_t kDepth = 512, kGatheredRows = 1024;
constexpr int64_t kGatheredColumns = 2 * kTileRows;

int64_t GatheredSize(int64_t columns, int64_t rows) {
  return (columns + kGatheredColumns - 1) / kGatheredColumns * kGatheredColumns * rows;
}

// A row's columns, into blocks of 12 columns [blocks, rows, 12]: then tiles go through the rows of
// neighbouring memory.
void GatherRow(const float* columns, int64_t count, int64_t row, int64_t rows, float* blocks) {
  for (int64_t first = 0; first < count; first += kGatheredColumns) {
    std::copy_n(columns + first, std::min(kGatheredColumns, count - first),
                blocks + first * rows + row * kGatheredColumns);
  }
}

// A panel's columns of a weight's gradient [columns, 4 units], from `depth` of the gathered rows.
void AddGradient(const float* blocks, int64_t columns, int64_t first, int64_t depth, int64_t rows,
                 const float* panel, int64_t width, float* gradient, int64_t gates, bool continues) {
  for (int64_t column = 0; column < columns; column += kGatheredColumns) {
    MultiplyPanel(std::min(kGatheredColumns, columns - column), width, depth,
                  {blocks + column * rows + first * kGatheredColumns, 1, kGatheredColumns}, panel,
                  gradient + column * gates, gates, continues);
  }
}

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

int64_t RowsAtATime(const LstmShape& shape) { return std::min(kGatheredRows, shape.rows()); }

}  // namespace

int64_t LstmWeightGradients::Workspace(const LstmShape& shape) {
  const int64_t rows = RowsAtATime(shape);
  return GatheredSize(shape.units, rows) + GatheredSize(shape.features, rows);
}

LstmWeightGradients::LstmWeightGradients(const LstmShape& shape, const LstmArguments& arguments,
                                         const float* outputs, float* workspace)
    : shape_(shape),
      x_(arguments.x),
      hidden_before_(HiddenBefore(shape, arguments, outputs)),
      rows_(RowsAtATime(shape)),
      gathered_hidden_(workspace),
      gathered_x_(workspace + GatheredSize(shape.units, rows_)) {}

void LstmWeightGradients::Gather(int64_t first, int64_t part) const {
  const int64_t rows = std::min(rows_, shape_.rows() - first);
  for (int64_t row = part * kPartRows; row < std::min(rows, (part + 1) * kPartRows); ++row) {
    GatherRow(hidden_before_[first + row], shape_.units, row, rows, gathered_hidden_);
    GatherRow(x_ + (first + row) * shape_.features, shape_.features, row, rows, gathered_x_);
  }
}

void LstmWeightGradients::Compute(const LstmGradients& gradients, const Parallel& parallel) const {
  std::fill_n(gradients.bias, shape_.gates(), 0.0f);
  for (int64_t first = 0; first == 0 || first < shape_.rows(); first += rows_) {
    const int64_t rows = std::min(rows_, shape_.rows() - first);
    if (first > 0) {
      parallel.ForEach(parts(), part_cost(), [&](int64_t part) { Gather(first, part); });
    }
    const int64_t cost = rows * (shape_.features + shape_.units) * kPanelColumns / 16;
    parallel.ForEach(Panels(shape_.gates()), cost,
                     [&](int64_t panel) { ComputePanel(gradients, panel, first, rows); });
    if (rows == 0) return;
  }
}

void LstmWeightGradients::ComputePanel(const LstmGradients& gradients, int64_t index, int64_t first,
                                       int64_t rows) const {
  const int64_t gates = shape_.gates(), column = index * kPanelColumns;
  const int64_t width = std::min<int64_t>(kPanelColumns, gates - column);
  alignas(64) float panel[kDepth * kPanelColumns], bias[kPanelColumns] = {};
  std::copy_n(gradients.bias + column, width, bias);
  for (int64_t row = 0; row == 0 || row < rows; row += kDepth) {
    const int64_t depth = std::min(kDepth, rows - row);
    PackPanel(index, gates, depth, {gradients.sums + (first + row) * gates, 1, gates}, panel);
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t j = 0; j < kPanelColumns; ++j) bias[j] += panel[k * kPanelColumns + j];
    }
    const bool continues = first + row > 0;
    AddGradient(gathered_x_, shape_.features, row, depth, rows, panel, width, gradients.kernel + column,
                gates, continues);
    AddGradient(gathered_hidden_, shape_.units, row, depth, rows, panel, width, gradients.recurrent + column,
                gates, continues);
  }
  std::copy_n(bias, width, gradients.bias + column);
}

}  // namespace dqat::core
