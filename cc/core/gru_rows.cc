// Compiled once per instruction set with -DDQAT_INSTRUCTION_SET=<namespace>; see rows.cc.
#include "core/gru_rows.h"

#include "core/element.h"

namespace dqat::core::DQAT_INSTRUCTION_SET {
namespace {

constexpr int kLanes = kGruLanes;

inline void Record(GruRecord* record, int point, int u, float value) {
  const float low = RecordMin(value), high = RecordMax(value);
  record->min[point][u] = low < record->min[point][u] ? low : record->min[point][u];
  record->max[point][u] = high > record->max[point][u] ? high : record->max[point][u];
}

void Forward(const GruGrids& given, int64_t blocks, int64_t stride, const float* projected,
             const float* product, const float* hidden, float* after, GruRecord* found) {
  const GruGrids grids = given;
  GruRecord record = *found;
  for (int64_t block = 0; block < blocks; ++block) {
    const float *x = projected + block * kLanes, *p = product + block * kLanes, *h = hidden + block * kLanes;
    float* y = after + block * kLanes;
#pragma GCC ivdep
    for (int u = 0; u < kLanes; ++u) {
      const GruParts sums = {p[u], p[stride + u], p[2 * stride + u]};
      const GruValues v = GruForward({x[u], x[stride + u], x[2 * stride + u]}, sums, h[u], grids);
      y[u] = v.hidden;
      Record(&record, kGruProduct, u, sums.z);
      Record(&record, kGruProduct, u, sums.r);
      Record(&record, kGruProduct, u, sums.h);
      Record(&record, kGruGatesSum, u, v.z_sum_value);
      Record(&record, kGruGatesSum, u, v.r_sum_value);
      Record(&record, kGruGates, u, v.z_value);
      Record(&record, kGruGates, u, v.r_value);
      Record(&record, kGruResetProduct, u, v.reset_product_value);
      Record(&record, kGruCandidateSum, u, v.c_sum_value);
      Record(&record, kGruCandidate, u, v.candidate_value);
      Record(&record, kGruKept, u, v.kept_value);
      Record(&record, kGruOpenness, u, v.openness_value);
      Record(&record, kGruNew, u, v.new_value);
      Record(&record, kGruHidden, u, v.hidden_value);
    }
  }
  *found = record;
}

void Backward(const GruGrids& given, int64_t blocks, int64_t stride, const float* projected,
              const float* product, const float* hidden, const float* slope, float* to_projected,
              float* to_product, float* to_hidden) {
  const GruGrids grids = given;
  for (int64_t block = 0; block < blocks; ++block) {
    const float *x = projected + block * kLanes, *p = product + block * kLanes, *h = hidden + block * kLanes;
    const float* dy = slope + block * kLanes;
    float *dx = to_projected + block * kLanes, *dp = to_product + block * kLanes;
    float* dh = to_hidden + block * kLanes;
#pragma GCC ivdep
    for (int u = 0; u < kLanes; ++u) {
      const GruParts sums = {p[u], p[stride + u], p[2 * stride + u]};
      const GruValues v = GruForward({x[u], x[stride + u], x[2 * stride + u]}, sums, h[u], grids);
      const GruSlopes slopes = GruBackward(v, h[u], dy[u], grids);
      const GruParts through = ThroughProduct(slopes.product, sums, grids);
      dx[u] = slopes.projected.z;
      dx[stride + u] = slopes.projected.r;
      dx[2 * stride + u] = slopes.projected.h;
      dp[u] = through.z;
      dp[stride + u] = through.r;
      dp[2 * stride + u] = through.h;
      dh[u] = slopes.hidden;
    }
  }
}

}  // namespace

const GruRowKernels kGruRowKernels = {Forward, Backward};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
