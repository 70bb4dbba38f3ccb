// TFLite's integer LSTM (int8 input, weights and hidden state, int16 cell state), as a plain reference loop:
// UNIDIRECTIONAL_SEQUENCE_LSTM without projection or layer norm, to the bit. After lite/kernels/lstm_eval.cc.
#ifndef DQAT_CORE_INTEGER_LSTM_H_
#define DQAT_CORE_INTEGER_LSTM_H_

#include <cstdint>

#include "core/fixed_point.h"
#include "core/integer_kernels.h"

namespace dqat::core {

struct IntegerLstmShape {
  int64_t batch = 0;
  int64_t time = 0;
  int64_t inputs = 0;
  int64_t units = 0;
};

struct IntegerLstmParameters {
  int32_t input_zero_point = 0;
  int32_t hidden_zero_point = 0;
  // Of gates i, f, c, o: from the sum's scale to Q3.12.
  QuantizedMultiplier input_multipliers[4];
  QuantizedMultiplier recurrent_multipliers[4];
  QuantizedMultiplier hidden_multiplier;  // from Q0.30 to the hidden state's scale
  int cell_exponent = 0;                  // the cell state's scale is 2^cell_exponent; -15 to -9
  int16_t cell_clip = 0;                  // in the cell state's scale; 0 for none
  // [3, units]: what input, forget and output gate see the cell state through, each with its multiplier to
  // Q3.12; or null.
  const int16_t* peepholes = nullptr;
  QuantizedMultiplier peephole_multipliers[3];
};

// input [batch, time, inputs]; input_weights [4, units, inputs]; recurrent_weights [4, units, units]; bias
// [4, units]; hidden and cell [batch, units], which the last states replace; output [batch, time, units].
void IntegerLstm(const IntegerLstmShape& shape, const IntegerLstmParameters& parameters, const int8_t* input,
                 const int8_t* input_weights, const int8_t* recurrent_weights, const int32_t* bias,
                 int8_t* hidden, int16_t* cell, int8_t* output);

}  // namespace dqat::core

#endif  // DQAT_CORE_INTEGER_LSTM_H_
