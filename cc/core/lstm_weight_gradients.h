// The gradients to an LSTM's weights: products over all timesteps at once, of what the sums were made from
// with the gradients to these sums.
#ifndef DQAT_CORE_LSTM_WEIGHT_GRADIENTS_H_
#define DQAT_CORE_LSTM_WEIGHT_GRADIENTS_H_

#include <cstdint>
#include <vector>

#include "core/lstm.h"
#include "core/parallel.h"

namespace dqat::core {

class LstmWeightGradients {
 public:
  // Floats of `workspace`, which is aligned to 64 bytes.
  static int64_t Workspace(const LstmShape& shape);

  // `outputs` are those of the forward pass.
  LstmWeightGradients(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
                      float* workspace);

  // The products read their left operands from a copy, of many rows. It needs no gradient: parts 0 to parts()
  // - 1 of the first one are to be gathered beforehand, by any threads.
  int64_t parts() const { return (rows_ + kPartRows - 1) / kPartRows; }
  int64_t part_cost() const { return kPartRows * (shape_.units + shape_.features) / 4; }
  void Gather(int64_t part) const { Gather(0, part); }

  // From gradients.sums to gradients.kernel, .recurrent and .bias: sums over all rows, in the order of
  // memory.
  void Compute(const LstmGradients& gradients, const Parallel& parallel) const;

 private:
  static constexpr int64_t kPartRows = 64;

  void Gather(int64_t first, int64_t part) const;
  // The columns of one panel of the gradients, from `rows` rows from `first` on.
  void ComputePanel(const LstmGradients& gradients, int64_t panel, int64_t first, int64_t rows) const;

  const LstmShape shape_;
  const float* const x_;
  const std::vector<const float*> hidden_before_;  // of each row of the input: what its timestep started from
  const int64_t rows_;                             // that are gathered at a time
  float *const gathered_hidden_, *const gathered_x_;
};

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_WEIGHT_GRADIENTS_H_
