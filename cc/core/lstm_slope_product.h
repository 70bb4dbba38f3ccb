// The product of an LSTM's backward pass over time: what the gradients to a timestep's sums, times the
// recurrent weights, give to the hidden states that it started from.
//
// A thread reads all these weights in every timestep. Where they don't fit into a core's second-level cache,
// and their scales are known, they are kept as integer codes, exact, in half the memory of floats; each
// gate's sums are then multiplied by its scale.
#ifndef DQAT_CORE_LSTM_SLOPE_PRODUCT_H_
#define DQAT_CORE_LSTM_SLOPE_PRODUCT_H_

#include <atomic>
#include <cstdint>

#include "core/lstm.h"
#include "core/parallel.h"
#include "core/product_tiles.h"

namespace dqat::core {

class LstmSlopeProduct {
 public:
  // Floats of `workspace`, which is aligned to 64 bytes.
  static int64_t Workspace(const LstmShape& shape);

  // `is_integer`: whether the arguments' scales are those of all operands, see LstmRounding.
  LstmSlopeProduct(const LstmShape& shape, const LstmArguments& arguments, bool is_integer, float* workspace);

  // Packs the weights of 64 units. Panels may be packed by several threads.
  void Pack(int64_t panel);
  // After all of them: packs them as floats where some weight has no code.
  void Finish(const Parallel& parallel);

  // sums[r] = slopes(r) R^T for `rows` rows and the units of a panel: [rows, 64].
  void Multiply(int64_t panel, const float* slopes, int64_t row_stride, int64_t rows, float* sums) const;

 private:
  void PackFloats(int64_t panel) const;
  bool PackCodes(int64_t panel) const;

  const LstmShape shape_;
  const LstmArguments& arguments_;
  float* const weights_;  // [panels, 4 units, 64], as floats or as codes
  bool has_codes_;
  std::atomic<bool> fit_{true};
};

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_SLOPE_PRODUCT_H_
