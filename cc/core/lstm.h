// An LSTM on the quantization points of TFLite's integer LSTM, over a whole sequence, forwards and backwards.
//
//   sums = x_t K + b + h_{t-1} R          gates i, f, g, o, saturating at ±8
//   v_t  = clip(sigmoid(f) c_{t-1} + sigmoid(i) tanh(g), ±10)         recorded
//   c_t  = fake-quant(v_t)
//   w_t  = sigmoid(o) tanh(c_t)                                       recorded
//   h_t  = fake-quant(w_t)
//
// Where a timestep is masked, the states and the output stay what they were (an output before the first
// timestep is 0), as in Keras. Gradients go straight through the roundings and stop where a value was
// clipped.
//
// Everything is row-major. A row's outputs are a function of that row and of the weights alone, to the bit:
// see products.h. With AVX2 and AVX-512 they are the same bits. No result depends on the number of threads.
#ifndef DQAT_CORE_LSTM_H_
#define DQAT_CORE_LSTM_H_

#include <cstdint>

#include "core/lstm_rows.h"
#include "core/parallel.h"
#include "core/quantization.h"

namespace dqat::core {

struct LstmShape {
  int64_t batch = 0;
  int64_t time = 0;
  int64_t features = 0;
  int64_t units = 0;

  int64_t blocks() const { return (units + kUnitLanes - 1) / kUnitLanes; }
  int64_t padded_units() const { return blocks() * kUnitLanes; }
  int64_t rows() const { return batch * time; }
  int64_t gates() const { return 4 * units; }
  // Floats of one row of what the forward pass keeps: [blocks, 5, 16], see LstmRowKernels.
  int64_t kept_row() const { return blocks() * kKeptParts * kUnitLanes; }
};

StateGrid MakeStateGrid(const Grid& grid);

struct LstmArguments {
  const float* x;          // [batch, time, features]
  const float* kernel;     // [features, 4 units]: gates i, f, g, o
  const float* recurrent;  // [units, 4 units]
  const float* bias;       // [4 units], or null
  const float* hidden;     // [batch, units]: before the first timestep
  const float* cell;       // [batch, units]
  const bool* mask;        // [batch, time]: false where a timestep is left out; or null
  bool go_backwards;       // from the last timestep to the first; outputs are in the order of computation
  bool time_major;         // [time, batch] where it says [batch, time], here and in results and gradients
  StateGrid hidden_grid;
  StateGrid cell_grid;
};

struct LstmResults {
  float* outputs;  // [batch, time, units]
  float* hidden;   // [batch, units]: after the last timestep
  float* cell;     // [batch, units]
  Range hidden_record;
  Range cell_record;
  float* kept;  // [batch, time, kept_row()]: for the backward pass
};

// Floats of `workspace`, which is aligned to 64 bytes as `kept` is.
int64_t LstmForwardWorkspace(const LstmShape& shape);
void LstmForward(const LstmShape& shape, const LstmArguments& arguments, LstmResults* results,
                 float* workspace, const Parallel& parallel);

struct LstmOutputSlopes {
  const float* outputs;  // like LstmResults
  const float* hidden;
  const float* cell;
};

struct LstmGradients {
  float* sums;       // [batch, time, 4 units]; the gradient to x is its product with the kernel, transposed
  float* kernel;     // [features, 4 units]
  float* recurrent;  // [units, 4 units]
  float* bias;       // [4 units]
  float* hidden;     // [batch, units]
  float* cell;       // [batch, units]
};

int64_t LstmBackwardWorkspace(const LstmShape& shape);
// `outputs` and `kept` are those of the forward pass.
void LstmBackward(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
                  const float* kept, const LstmOutputSlopes& slopes, const LstmGradients& gradients,
                  float* workspace, const Parallel& parallel);

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_H_
