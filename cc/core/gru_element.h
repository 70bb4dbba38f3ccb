// One unit of a GRU with the reset gate after the recurrent product, in one timestep, as TFLite's int8
// operators compute it one after the other; forwards and backwards, in float32. See lstm_element.h.
#ifndef DQAT_CORE_GRU_ELEMENT_H_
#define DQAT_CORE_GRU_ELEMENT_H_

#include "core/lstm_element.h"

namespace dqat::core {

// What goes into a sigmoid or tanh saturates here, as in dqat/layers/cell_form.py.
constexpr float kGruGateLimit = 8.0f;

// The quantization points, in the order of computation.
enum GruPoint {
  kGruProduct,       // hidden state times recurrent weights, with bias
  kGruGatesSum,      // of the update and the reset gate, before their sigmoid
  kGruGates,         // after it
  kGruResetProduct,  // reset gate times the candidate's share of the product
  kGruCandidateSum,  // before the tanh
  kGruCandidate,     // after it
  kGruKept,          // update gate times the hidden state
  kGruOpenness,      // 1 - update gate
  kGruNew,           // that times the candidate
  kGruHidden,        // the sum of both: the new hidden state
};
constexpr int kGruPoints = 10;

struct GruGrids {
  StateGrid at[kGruPoints];
};

// Update gate, reset gate and candidate.
struct GruParts {
  float z, r, h;
};

// Everything that a unit computes; values are before their quantization, what is quantized has no suffix.
struct GruValues {
  GruParts product;
  float z_sum, r_sum, candidate_sum;            // before the clip
  float z_sum_value, r_sum_value, c_sum_value;  // clipped
  float z_value, r_value, candidate_value;
  float z, r, candidate;
  float reset_product_value;
  float kept_value, openness_value, openness, new_value, hidden_value, hidden;
};

DQAT_HOST_DEVICE static inline GruValues GruForward(const GruParts& projected, const GruParts& product,
                                                    float hidden, const GruGrids& grids) {
  GruValues v;
  v.product.z = QuantizeState(product.z, grids.at[kGruProduct]);
  v.product.r = QuantizeState(product.r, grids.at[kGruProduct]);
  v.product.h = QuantizeState(product.h, grids.at[kGruProduct]);
  v.z_sum = projected.z + v.product.z;
  v.r_sum = projected.r + v.product.r;
  v.z_sum_value = Clip(v.z_sum, -kGruGateLimit, kGruGateLimit);
  v.r_sum_value = Clip(v.r_sum, -kGruGateLimit, kGruGateLimit);
  v.z_value = Sigmoid(QuantizeState(v.z_sum_value, grids.at[kGruGatesSum]));
  v.r_value = Sigmoid(QuantizeState(v.r_sum_value, grids.at[kGruGatesSum]));
  v.z = QuantizeState(v.z_value, grids.at[kGruGates]);
  v.r = QuantizeState(v.r_value, grids.at[kGruGates]);
  v.reset_product_value = v.r * v.product.h;
  v.candidate_sum = projected.h + QuantizeState(v.reset_product_value, grids.at[kGruResetProduct]);
  v.c_sum_value = Clip(v.candidate_sum, -kGruGateLimit, kGruGateLimit);
  v.candidate_value = Tanh(QuantizeState(v.c_sum_value, grids.at[kGruCandidateSum]));
  v.candidate = QuantizeState(v.candidate_value, grids.at[kGruCandidate]);
  v.kept_value = v.z * hidden;
  v.openness_value = 1.0f - v.z;
  v.openness = QuantizeState(v.openness_value, grids.at[kGruOpenness]);
  v.new_value = v.openness * v.candidate;
  v.hidden_value =
      QuantizeState(v.kept_value, grids.at[kGruKept]) + QuantizeState(v.new_value, grids.at[kGruNew]);
  v.hidden = QuantizeState(v.hidden_value, grids.at[kGruHidden]);
  return v;
}

DQAT_HOST_DEVICE static inline float GruPasses(float value, const StateGrid& grid) {
  return Passes(value, grid.grad_min, grid.grad_max);
}

struct GruSlopes {
  GruParts projected, product;
  float hidden;  // to the hidden state before, but for the way through the product
};

// `slope` is what arrives at the new hidden state.
DQAT_HOST_DEVICE static inline GruSlopes GruBackward(const GruValues& v, float hidden, float slope,
                                                     const GruGrids& grids) {
  const float to_hidden = slope * GruPasses(v.hidden_value, grids.at[kGruHidden]);
  const float to_new = to_hidden * GruPasses(v.new_value, grids.at[kGruNew]);
  const float to_kept = to_hidden * GruPasses(v.kept_value, grids.at[kGruKept]);
  const float to_openness = to_new * v.candidate * GruPasses(v.openness_value, grids.at[kGruOpenness]);
  const float to_candidate = to_new * v.openness * GruPasses(v.candidate_value, grids.at[kGruCandidate]) *
                             (1.0f - v.candidate_value * v.candidate_value) *
                             GruPasses(v.c_sum_value, grids.at[kGruCandidateSum]) *
                             Passes(v.candidate_sum, -kGruGateLimit, kGruGateLimit);
  const float to_reset_product = to_candidate * GruPasses(v.reset_product_value, grids.at[kGruResetProduct]);
  const float to_r = to_reset_product * v.product.h, to_z = to_kept * hidden - to_openness;
  GruSlopes slopes;
  slopes.projected.z = to_z * GruPasses(v.z_value, grids.at[kGruGates]) * (v.z_value * (1.0f - v.z_value)) *
                       GruPasses(v.z_sum_value, grids.at[kGruGatesSum]) *
                       Passes(v.z_sum, -kGruGateLimit, kGruGateLimit);
  slopes.projected.r = to_r * GruPasses(v.r_value, grids.at[kGruGates]) * (v.r_value * (1.0f - v.r_value)) *
                       GruPasses(v.r_sum_value, grids.at[kGruGatesSum]) *
                       Passes(v.r_sum, -kGruGateLimit, kGruGateLimit);
  slopes.projected.h = to_candidate;
  slopes.hidden = to_kept * v.z;
  slopes.product.z = slopes.projected.z;
  slopes.product.r = slopes.projected.r;
  slopes.product.h = to_reset_product * v.r;
  return slopes;
}

// The same through the quantization of the product.
DQAT_HOST_DEVICE static inline GruParts ThroughProduct(const GruParts& slopes, const GruParts& product,
                                                       const GruGrids& grids) {
  const StateGrid& grid = grids.at[kGruProduct];
  return {slopes.z * GruPasses(product.z, grid), slopes.r * GruPasses(product.r, grid),
          slopes.h * GruPasses(product.h, grid)};
}

}  // namespace dqat::core

#endif  // DQAT_CORE_GRU_ELEMENT_H_
