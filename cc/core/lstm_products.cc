#include "core/lstm_products.h"

#include <algorithm>
#include <atomic>

#include "core/code_products.h"
#include "core/lstm_loop.h"

namespace dqat::core {
namespace {

constexpr int64_t kTaskRows = 192;  // of the inputs, with one panel of the kernel

bool AreFinite(const float* values, int64_t count) {
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += values[i] * 0.0f;
  return sum == 0.0f;
}

int16_t* AsCodes(float* memory) { return reinterpret_cast<int16_t*>(memory); }
int8_t* AsBytes(float* memory) { return reinterpret_cast<int8_t*>(memory); }

// One depth of a block of units in [depth, 4 units]: [4, 16].
void LoadBlock(const LstmShape& shape, const float* weights, int64_t depth, int64_t block, float* lanes) {
  const int64_t unit = block * kLanes;
  LoadGates(weights + depth * shape.gates() + unit, shape.units, std::min(kLanes, shape.units - unit), lanes);
}

// A value for each of 64 columns, from one for each gate: of a block of units, and of a panel of [depth, 4
// units].
void SpreadOverBlock(const float* gates, float* columns) {
  for (int64_t j = 0; j < kPanelColumns; ++j) columns[j] = gates[j / kLanes];
}
void SpreadOverPanel(const LstmShape& shape, const float* gates, int64_t panel, float* columns) {
  for (int64_t j = 0; j < kPanelColumns; ++j) {
    columns[j] = gates[std::min((panel * kPanelColumns + j) / shape.units, kGates - 1)];
  }
}

// Encodes a panel of pairs from load(depth, lanes [64]).
template <typename Load>
bool EncodePanel(int64_t depth, const float* steps, int8_t* panel, Load load) {
  const CodeKernels& kernels = CodeTiles();
  alignas(64) float even[kPanelColumns], odd[kPanelColumns];
  bool fit = true;
  for (int64_t pair = 0; pair < Pairs(depth); ++pair) {
    load(2 * pair, even);
    if (2 * pair + 1 < depth) {
      load(2 * pair + 1, odd);
    } else {
      std::fill_n(odd, kPanelColumns, 0.0f);
    }
    fit &= kernels.encode_pairs(even, odd, steps, panel + pair * 2 * kPanelColumns);
  }
  return fit;
}

}  // namespace

struct LstmProducts::Memory {
  Memory(const LstmShape& shape, float* memory) {
    const auto take = [&](int64_t count) {
      float* part = memory == nullptr ? nullptr : memory + size;
      size += count;
      return part;
    };
    // Pairs of codes take no more than floats.
    kernel = take(PackedSize(shape.gates(), shape.features));
    recurrent = take(shape.blocks() * shape.units * kPanelColumns);
    bias = take(shape.blocks() * kPanelColumns);
    const int64_t states = shape.batch * shape.padded_units();
    for (HiddenStates& state : hidden) state.values = take(states);
    for (HiddenStates& state : hidden) state.codes = AsCodes(take(states / 2));
    x = AsCodes(take(shape.rows() * Pairs(shape.features)));
  }
  int64_t size = 0;
  float *kernel, *recurrent, *bias;
  HiddenStates hidden[2];
  int16_t* x;
};

int64_t LstmProducts::Workspace(const LstmShape& shape) { return Memory(shape, nullptr).size; }

LstmProducts::LstmProducts(const LstmShape& shape, const LstmArguments& arguments,
                           const LstmRounding& rounding, float* workspace, const Parallel& parallel)
    : shape_(shape), arguments_(arguments), rounding_(rounding) {
  const Memory memory(shape, workspace);
  kernel_ = memory.kernel;
  recurrent_ = memory.recurrent;
  bias_ = memory.bias;
  x_ = memory.x;
  std::copy_n(memory.hidden, 2, hidden_);
  PadRows(shape, arguments.hidden, hidden_[0].values);
  for (int64_t block = 0; block < shape.blocks(); ++block) {
    float* lanes = bias_ + block * kPanelColumns;
    if (arguments.bias == nullptr) {
      std::fill_n(lanes, kPanelColumns, 0.0f);
    } else {
      LoadBlock(shape, arguments.bias, 0, block, lanes);
    }
  }
  if (rounding.is_integer && Encode(parallel)) return;
  x_ = hidden_[0].codes = hidden_[1].codes = nullptr;
  parallel.ForEach(shape.blocks(), (shape.units + shape.features) * kPanelColumns / 8, [&](int64_t block) {
    float* panel = recurrent_ + block * shape.units * kPanelColumns;
    for (int64_t k = 0; k < shape.units; ++k) {
      LoadBlock(shape, arguments.recurrent, k, block, panel + k * kPanelColumns);
    }
    PackPanel(block, shape.gates(), shape.features, {arguments.kernel, 1, shape.gates()},
              kernel_ + block * shape.features * kPanelColumns);
  });
}

// Returns whether all that goes into the sums has codes.
bool LstmProducts::Encode(const Parallel& parallel) const {
  if (Pairs(std::max(shape_.features, shape_.units)) > kMostPairs) return false;
  if (!AreFinite(arguments_.cell, shape_.batch * shape_.units)) return false;
  if (!AreFinite(bias_, shape_.blocks() * kPanelColumns)) return false;
  if (!CodeTiles().encode(shape_.batch * shape_.padded_units(), hidden_[0].values, rounding_.hidden_codes,
                          kMostLeftCode, hidden_[0].codes)) {
    return false;
  }
  // There are as many panels of the kernel as blocks of units.
  const int64_t chunks = (shape_.rows() + kTaskRows - 1) / kTaskRows, tasks = shape_.blocks() + chunks;
  const int64_t weights = (shape_.units + shape_.features) * shape_.gates();
  std::atomic<bool> fit{true};
  parallel.ForEach(tasks, (weights + shape_.rows() * shape_.features) / 8 / tasks, [&](int64_t task) {
    const int64_t row = (task - shape_.blocks()) * kTaskRows;
    if (task < shape_.blocks() ? !EncodeWeights(task) : !EncodeInputs(row)) {
      fit.store(false, std::memory_order_relaxed);
    }
  });
  return fit;
}

bool LstmProducts::EncodeInputs(int64_t first) const {
  const int64_t width = 2 * Pairs(shape_.features);
  bool fit = true;
  for (int64_t row = first; row < std::min(shape_.rows(), first + kTaskRows); ++row) {
    int16_t* codes = x_ + row * width;
    fit &= CodeTiles().encode(shape_.features, arguments_.x + row * shape_.features, rounding_.x_codes,
                              kMostLeftCode, codes);
    std::fill(codes + shape_.features, codes + width, 0);
  }
  return fit;
}

bool LstmProducts::EncodeWeights(int64_t block) const {
  alignas(64) float steps[kPanelColumns];
  SpreadOverBlock(rounding_.recurrent_codes, steps);
  int8_t* panel = AsBytes(recurrent_) + block * Pairs(shape_.units) * 2 * kPanelColumns;
  const bool recurrent_fits = EncodePanel(shape_.units, steps, panel, [&](int64_t depth, float* lanes) {
    LoadBlock(shape_, arguments_.recurrent, depth, block, lanes);
  });
  const int64_t column = block * kPanelColumns,
                count = std::min<int64_t>(kPanelColumns, shape_.gates() - column);
  if (count <= 0) return recurrent_fits;
  SpreadOverPanel(shape_, rounding_.kernel_codes, block, steps);
  panel = AsBytes(kernel_) + block * Pairs(shape_.features) * 2 * kPanelColumns;
  return EncodePanel(shape_.features, steps, panel,
                     [&](int64_t depth, float* lanes) {
                       const float* row = arguments_.kernel + depth * shape_.gates() + column;
                       std::fill_n(std::copy_n(row, count, lanes), kPanelColumns - count, 0.0f);
                     }) &&
         recurrent_fits;
}

void LstmProducts::MultiplyInputs(int64_t first, int64_t count, float* gates,
                                  const Parallel& parallel) const {
  const int64_t depth = shape_.features, width = shape_.gates();
  if (x_ == nullptr) {
    Multiply(count, width, depth, {arguments_.x + first * depth, depth, 1}, kernel_, gates + first * width,
             width, parallel);
    return;
  }
  const int64_t pairs = Pairs(depth), chunks = (count + kTaskRows - 1) / kTaskRows;
  const int64_t cost = std::min(count, kTaskRows) * depth * kPanelColumns / 32;
  parallel.ForEach(Panels(width) * chunks, cost, [&](int64_t task) {
    const int64_t panel = task / chunks, column = panel * kPanelColumns;
    const int64_t row = first + task % chunks * kTaskRows;
    alignas(64) float factors[kPanelColumns];
    SpreadOverPanel(shape_, rounding_.input_factors, panel, factors);
    MultiplyCodes(std::min(kTaskRows, first + count - row), std::min<int64_t>(kPanelColumns, width - column),
                  pairs, x_ + row * 2 * pairs, 2 * pairs,
                  AsBytes(kernel_) + panel * pairs * 2 * kPanelColumns, factors, gates + row * width + column,
                  width);
  });
}

void LstmProducts::MultiplyHidden(const HiddenStates& hidden, int64_t block, int64_t first, int64_t rows,
                                  float* sums) const {
  const int64_t padded = shape_.padded_units(), units = shape_.units;
  if (x_ == nullptr) {
    MultiplyPanel(rows, kPanelColumns, units, {hidden.values + first * padded, padded, 1},
                  recurrent_ + block * units * kPanelColumns, sums, kPanelColumns, /*continues=*/false);
    return;
  }
  alignas(64) float factors[kPanelColumns];
  SpreadOverBlock(rounding_.hidden_factors, factors);
  MultiplyCodes(rows, kPanelColumns, Pairs(units), hidden.codes + first * padded, padded,
                AsBytes(recurrent_) + block * Pairs(units) * 2 * kPanelColumns, factors, sums, kPanelColumns);
}

}  // namespace dqat::core
