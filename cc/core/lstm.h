// An LSTM on the quantization points of TFLite's integer LSTM, over a whole sequence, forwards and backwards.
//
//   sums = x_t K + b + h_{t-1} R          gates i, f, g, o, saturating at ±8
//   v_t  = clip(sigmoid(f) c_{t-1} + sigmoid(i) tanh(g), ±10)         recorded
//   c_t  = fake-quant(v_t)
//   w_t  = sigmoid(o) tanh(c_t)                                       recorded
//   h_t  = fake-quant(w_t)
//
// in float32, or with the integer kernel's roundings: see lstm_element.h.
//
// Where a timestep is masked, the states and the output stay what they were (an output before the first
// timestep is 0), as in Keras. Gradients go straight through the roundings and stop where a value was
// clipped.
//
// Everything is row-major. A row's outputs are a function of that row and of the weights alone, to the bit:
// see lstm_products.h. With AVX2 and AVX-512 they are the same bits. No result depends on the number of
// threads.
#ifndef DQAT_CORE_LSTM_H_
#define DQAT_CORE_LSTM_H_

#include <cstdint>

#include "core/lstm_rows.h"
#include "core/parallel.h"
#include "core/quantization.h"
#include "core/state_grid.h"

namespace dqat::core {

struct LstmShape {
  int64_t batch = 0;
  int64_t time = 0;
  int64_t features = 0;
  int64_t units = 0;

  DQAT_HOST_DEVICE int64_t blocks() const { return (units + kUnitLanes - 1) / kUnitLanes; }
  DQAT_HOST_DEVICE int64_t padded_units() const { return blocks() * kUnitLanes; }
  DQAT_HOST_DEVICE int64_t rows() const { return batch * time; }
  DQAT_HOST_DEVICE int64_t gates() const { return 4 * units; }
};

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
  // [3, 4], see MakeLstmRounding: then all is rounded as TFLite's integer LSTM rounds it. Or null.
  const float* scales = nullptr;
};

// Where timesteps stand: s counts them in the order of computation.
class TimeOrder {
 public:
  DQAT_HOST_DEVICE TimeOrder(const LstmShape& shape, const LstmArguments& arguments)
      : last_(shape.time - 1),
        batch_stride_(arguments.time_major ? 1 : shape.time),
        time_stride_(arguments.time_major ? shape.batch : 1),
        mask_(arguments.mask),
        backwards_(arguments.go_backwards) {}

  // The row of the input that timestep s reads, and the row of the outputs that it writes.
  DQAT_HOST_DEVICE int64_t Row(int64_t b, int64_t s) const {
    return OutputRow(b, backwards_ ? last_ - s : s);
  }
  DQAT_HOST_DEVICE int64_t OutputRow(int64_t b, int64_t s) const {
    return b * batch_stride_ + s * time_stride_;
  }
  // Rows from one member of the batch to the next.
  DQAT_HOST_DEVICE int64_t batch_stride() const { return batch_stride_; }
  DQAT_HOST_DEVICE bool Masked(int64_t b, int64_t s) const { return mask_ != nullptr && !mask_[Row(b, s)]; }

 private:
  const int64_t last_, batch_stride_, time_stride_;
  const bool* const mask_;
  const bool backwards_;
};

struct LstmResults {
  float* outputs;  // [batch, time, units]
  float* hidden;   // [batch, units]: after the last timestep
  float* cell;     // [batch, units]
  Range hidden_record;
  Range cell_record;
  // For the backward pass, in the order of x:
  float* gates;  // [batch, time, 4 units], see LstmGates
  float* cells;  // [batch, time, units]: the cell state after each timestep
};

// Floats of `workspace`, which is aligned to 64 bytes.
int64_t LstmForwardWorkspace(const LstmShape& shape);
void LstmForward(const LstmShape& shape, const LstmArguments& arguments, LstmResults* results,
                 float* workspace, const Parallel& parallel);

struct LstmKept {
  const float *gates, *cells;  // of LstmResults
};

struct LstmOutputSlopes {
  const float* outputs;  // like LstmResults
  const float* hidden;
  const float* cell;
};

struct LstmGradients {
  // [batch, time, 4 units], in the order of x; the gradient to x is its product with the kernel, transposed.
  // May be LstmKept::gates: then a step needs that memory once.
  float* sums;
  float* kernel;     // [features, 4 units]
  float* recurrent;  // [units, 4 units]
  float* bias;       // [4 units]
  float* hidden;     // [batch, units]
  float* cell;       // [batch, units]
};

int64_t LstmBackwardWorkspace(const LstmShape& shape);
// `outputs` are those of the forward pass.
void LstmBackward(const LstmShape& shape, const LstmArguments& arguments, const float* outputs,
                  const LstmKept& kept, const LstmOutputSlopes& slopes, const LstmGradients& gradients,
                  float* workspace, const Parallel& parallel);

}  // namespace dqat::core

#endif  // DQAT_CORE_LSTM_H_
