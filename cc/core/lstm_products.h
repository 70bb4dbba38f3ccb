// The two products of an LSTM's forward pass: all timesteps' inputs with the kernel, and a timestep's hidden
// states with the recurrent weights.
//
// Where the scales of their operands are known the products are those of integer codes, exact as in TFLite's
// kernel, see code_products.h; else, and where an operand is no number, of floats.
#ifndef DQAT_CORE_LSTM_PRODUCTS_H_
#define DQAT_CORE_LSTM_PRODUCTS_H_

#include <cstdint>

#include "core/lstm.h"
#include "core/parallel.h"

namespace dqat::core {

// [batch, padded units] each; no codes where products are those of floats.
struct HiddenStates {
  float* values;
  int16_t* codes;
};

class LstmProducts {
 public:
  // Floats of `workspace`, which is aligned to 64 bytes.
  static int64_t Workspace(const LstmShape& shape);

  // Packs both weights, and encodes x.
  LstmProducts(const LstmShape& shape, const LstmArguments& arguments, const LstmRounding& rounding,
               float* workspace, const Parallel& parallel);

  // The hidden states before timestep s; those of timestep 0 are the initial ones.
  HiddenStates Before(int64_t s) const { return hidden_[s % 2]; }

  // The bias of a block of 16 units: [4, 16].
  const float* Bias(int64_t block) const { return bias_ + block * kUnitLanes * 4; }

  // gates[row] = x[row] K for `count` rows from `first` on.
  void MultiplyInputs(int64_t first, int64_t count, float* gates, const Parallel& parallel) const;

  // sums[r] = h R for `rows` members of the batch from `first` on, and one block of 16 units: [rows, 4, 16].
  void MultiplyHidden(const HiddenStates& hidden, int64_t block, int64_t first, int64_t rows,
                      float* sums) const;

 private:
  struct Memory;

  bool Encode(const Parallel& parallel) const;
  bool EncodeInputs(int64_t first) const;
  bool EncodeWeights(int64_t block) const;

  const LstmShape shape_;
  const LstmArguments& arguments_;
  const LstmRounding& rounding_;
  float *kernel_, *recurrent_;  // packed, as floats or as pairs of codes
  float* bias_;
  int16_t* x_;  // codes; null where products are those of floats
  HiddenStates hidden_[2];
};

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_PRODUCTS_H_
