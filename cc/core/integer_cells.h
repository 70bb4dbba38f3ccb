// SimpleRNN and GRU as chains of TFLite's int8 operators, which is how they are exported: plain reference
// loops, equal to the interpreter's builtin kernels to the bit.
#ifndef DQAT_CORE_INTEGER_CELLS_H_
#define DQAT_CORE_INTEGER_CELLS_H_

#include <cstdint>

#include "core/integer_elementwise.h"
#include "core/integer_kernels.h"

namespace dqat::core {

struct IntegerCellShape {
  int64_t batch = 0;
  int64_t time = 0;
  int64_t inputs = 0;
  int64_t units = 0;
};

// What makes the output of a SimpleRNN, or the candidate of a GRU. Relu is part of the sum.
enum class IntegerActivation { kTanh, kSigmoid, kRelu, kLinear };

// int8, symmetric, [outputs, inputs]; bias int32 [outputs] on the product of both scales, or null.
struct IntegerMatrix {
  const int8_t* weight = nullptr;
  const int32_t* bias = nullptr;
  float scale = 1.0f;
};

// Grids are called like the layer's quantization points.
struct IntegerSimpleRnnParameters {
  IntegerActivation activation = IntegerActivation::kTanh;
  IntegerGrid input, input_product, recurrent_product, hidden_sum, hidden;
};

// input [batch, time, inputs]; kernel [units, inputs]; recurrent [units, units]; hidden [batch, units], which
// the last state replaces; output [batch, time, units].
void IntegerSimpleRnn(const IntegerCellShape& shape, const IntegerSimpleRnnParameters& parameters,
                      const int8_t* input, const IntegerMatrix& kernel, const IntegerMatrix& recurrent,
                      int8_t* hidden, int8_t* output);

struct IntegerGruParameters {
  IntegerActivation activation = IntegerActivation::kTanh;
  bool reset_after = true;
  IntegerGrid input, input_product, recurrent_product, gates_sum, gates, candidate_sum, candidate, kept,
      openness, new_part, hidden;
  IntegerGrid reset_product;                    // with reset_after
  IntegerGrid reset_hidden, candidate_product;  // without
};

// As IntegerSimpleRnn, with gates z, r and the candidate in this order: kernel [3 * units, inputs], recurrent
// [3 * units, units]. Without reset_after `recurrent` is of the gates, [2 * units, units], and `candidate`
// [units, units] of the candidate; with it `candidate` is not read.
void IntegerGru(const IntegerCellShape& shape, const IntegerGruParameters& parameters, const int8_t* input,
                const IntegerMatrix& kernel, const IntegerMatrix& recurrent, const IntegerMatrix& candidate,
                int8_t* hidden, int8_t* output);

}  // namespace dqat::core

#endif  // DQAT_CORE_INTEGER_CELLS_H_
