// The elementwise part of one timestep of a GRU (reset gate after the recurrent product) that int8 operators
// compute one after the other: ten quantization points in one pass, and its gradient, which computes them
// again instead of keeping them. See gru_element.h.
#ifndef DQAT_CORE_GRU_STEP_H_
#define DQAT_CORE_GRU_STEP_H_

#include <cstdint>

#include "core/gru_element.h"
#include "core/parallel.h"
#include "core/quantization.h"

namespace dqat::core {

struct GruStep {
  int64_t batch, units;
  const float* projected;  // [batch, 3 units]: the input's share of update gate, reset gate and candidate
  const float* product;    // [batch, 3 units]: hidden state times recurrent weights, and bias
  const float* hidden;     // [batch, units]: the state before
  const bool* mask;        // [batch]: false where the state stays and nothing is recorded; or null
  GruGrids grids;
};

// after: [batch, units]. records: kGruPoints, of the values before quantization.
void GruStepForward(const GruStep& step, float* after, Range* records, const Parallel& parallel);

// slope: [batch, units], what arrives at the state after.
void GruStepBackward(const GruStep& step, const float* slope, float* to_projected, float* to_product,
                     float* to_hidden, const Parallel& parallel);

}  // namespace dqat::core

#endif  // DQAT_CORE_GRU_STEP_H_
