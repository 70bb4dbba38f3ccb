#include "core/lstm_slope_product.h"

#include <algorithm>

#include "core/lstm_loop.h"

namespace dqat::core {
namespace {

UpperHalf* Codes(float* weights) { return reinterpret_cast<UpperHalf*>(weights); }

}  // namespace

int64_t LstmSlopeProduct::Workspace(const LstmShape& shape) { return PackedSize(shape.units, shape.gates()); }

LstmSlopeProduct::LstmSlopeProduct(const LstmShape& shape, const LstmArguments& arguments, bool is_integer,
                                   float* workspace)
    : shape_(shape),
      arguments_(arguments),
      weights_(workspace),
      has_codes_(is_integer && !SharesWeights(shape)) {}

void LstmSlopeProduct::Pack(int64_t panel) {
  if (!has_codes_) {
    PackFloats(panel);
  } else if (!PackCodes(panel)) {
    fit_.store(false, std::memory_order_relaxed);
  }
}

void LstmSlopeProduct::Finish(const Parallel& parallel) {
  if (fit_) return;
  has_codes_ = false;
  parallel.ForEach(Panels(shape_.units), shape_.gates() * kPanelColumns,
                   [&](int64_t panel) { PackFloats(panel); });
}

void LstmSlopeProduct::PackFloats(int64_t panel) const {
  const int64_t gates = shape_.gates();
  PackPanel(panel, shape_.units, gates, {arguments_.recurrent, gates, 1},
            weights_ + panel * gates * kPanelColumns);
}

bool LstmSlopeProduct::PackCodes(int64_t panel) const {
  constexpr int64_t kDepth = 64;
  alignas(64) float values[kDepth * kPanelColumns];
  const int64_t gates = shape_.gates(), units = shape_.units;
  UpperHalf* codes = Codes(weights_) + panel * gates * kPanelColumns;
  bool fit = true;
  for (int64_t first = 0; first < gates; first += kDepth) {
    const int64_t depth = std::min(kDepth, gates - first);
    PackPanel(panel, units, depth, {arguments_.recurrent + first, gates, 1}, values);
    for (int64_t k = 0; k < depth; ++k, codes += kPanelColumns) {
      const float steps = 1.0f / arguments_.scales[2 * kGates + (first + k) / units];
      fit &= ProductTiles().encode_columns(values + k * kPanelColumns, steps, codes);
    }
  }
  return fit;
}

void LstmSlopeProduct::Multiply(int64_t panel, const float* slopes, int64_t row_stride, int64_t rows,
                                float* sums) const {
  const int64_t gates = shape_.gates(), units = shape_.units;
  if (!has_codes_) {
    MultiplyPanel(rows, kPanelColumns, gates, {slopes, row_stride, 1},
                  weights_ + panel * gates * kPanelColumns, sums, kPanelColumns, /*continues=*/false);
    return;
  }
  for (int64_t gate = 0; gate < kGates; ++gate) {
    MultiplyCodePanel(rows, units, {slopes + gate * units, row_stride, 1},
                      Codes(weights_) + (panel * gates + gate * units) * kPanelColumns,
                      arguments_.scales[2 * kGates + gate], sums, /*continues=*/gate > 0);
  }
}

}  // namespace dqat::core
