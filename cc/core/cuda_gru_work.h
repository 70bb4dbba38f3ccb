// What the CUDA kernels of the GRU's timestep do; see cuda_lstm_work.h.
#ifndef DQAT_CORE_CUDA_GRU_WORK_H_
#define DQAT_CORE_CUDA_GRU_WORK_H_

#include <cstdint>

#include "core/cuda_lstm_work.h"
#include "core/gru_element.h"
#include "core/gru_step.h"

namespace dqat::core::cuda {

// In device memory; the grids of `step` are not used.
struct GruCase {
  GruStep step;
  Ranges ranges;  // of all points

  DQAT_HOST_DEVICE int64_t states() const { return step.batch * step.units; }
  int64_t tasks() const { return (states() + Plan::kThreads - 1) / Plan::kThreads; }

  // A thread's unit, in the order of [batch, units]; or -1.
  DQAT_HOST_DEVICE int64_t State(int64_t task, int thread) const {
    const int64_t state = task * Plan::kThreads + thread;
    return state < states() ? state : -1;
  }
  DQAT_HOST_DEVICE bool Masked(int64_t state) const {
    return step.mask != nullptr && !step.mask[state / step.units];
  }
  // Where the first of a unit's three parts stands.
  DQAT_HOST_DEVICE int64_t Part(int64_t state) const {
    return state / step.units * 3 * step.units + state % step.units;
  }
  DQAT_HOST_DEVICE GruParts Load(const float* parts, int64_t state) const {
    const float* first = parts + Part(state);
    return {first[0], first[step.units], first[2 * step.units]};
  }
  DQAT_HOST_DEVICE void Store(const GruParts& values, int64_t state, float* parts) const {
    float* first = parts + Part(state);
    first[0] = values.z;
    first[step.units] = values.r;
    first[2 * step.units] = values.h;
  }
  DQAT_HOST_DEVICE GruGrids Grids() const {
    GruGrids grids;
    for (int point = 0; point < kGruPoints; ++point) {
      grids.at[point] = MakeStateGrid(ranges.MakeGridOrNan(point));
    }
    return grids;
  }
};

struct GruForwardWork {
  using Memory = NoMemory;

  GruCase given;
  float* after;
  Pairs records;  // [points, tasks]
  int64_t tasks;

  struct Found {
    Pair at[kGruPoints];
  };

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t task, Memory&) const {
    typename Block::template PerThread<Found> found;
    block.ForEachThread([&](int thread) { found[thread] = Unit(given.State(task, thread)); });
    for (int point = 0; point < kGruPoints; ++point) {
      typename Block::template PerThread<Pair> one;
      block.ForEachThread([&](int thread) { one[thread] = found[thread].at[point]; });
      const Pair all = block.Reduce(one, MergeRecord());
      block.ForEachThread([&](int thread) {
        if (thread == 0) records.Set(point * tasks + task, all);
      });
    }
  }

 private:
  DQAT_HOST_DEVICE Found Unit(int64_t state) const {
    Found found;
    for (Pair& each : found.at) each = MergeRecord::Identity();
    if (state < 0) return found;
    const float hidden = given.step.hidden[state];
    if (given.Masked(state)) {
      after[state] = hidden;
      return found;
    }
    const GruParts product = given.Load(given.step.product, state);
    const GruValues v = GruForward(given.Load(given.step.projected, state), product, hidden, given.Grids());
    after[state] = v.hidden;
    const auto record = [&found](int point, float value) {
      found.at[point] = MergeRecord()(found.at[point], {RecordMin(value), RecordMax(value)});
    };
    record(kGruProduct, product.z);
    record(kGruProduct, product.r);
    record(kGruProduct, product.h);
    record(kGruGatesSum, v.z_sum_value);
    record(kGruGatesSum, v.r_sum_value);
    record(kGruGates, v.z_value);
    record(kGruGates, v.r_value);
    record(kGruResetProduct, v.reset_product_value);
    record(kGruCandidateSum, v.c_sum_value);
    record(kGruCandidate, v.candidate_value);
    record(kGruKept, v.kept_value);
    record(kGruOpenness, v.openness_value);
    record(kGruNew, v.new_value);
    record(kGruHidden, v.hidden_value);
    return found;
  }
};

struct GruBackwardWork {
  using Memory = NoMemory;

  GruCase given;
  const float* slope;
  float *to_projected, *to_product, *to_hidden;

  template <typename Block>
  DQAT_HOST_DEVICE void Run(Block& block, int64_t task, Memory&) const {
    block.ForEachThread([&](int thread) {
      const int64_t state = given.State(task, thread);
      if (state >= 0) Unit(state);
    });
  }

 private:
  DQAT_HOST_DEVICE void Unit(int64_t state) const {
    if (given.Masked(state)) {
      given.Store({0.0f, 0.0f, 0.0f}, state, to_projected);
      given.Store({0.0f, 0.0f, 0.0f}, state, to_product);
      to_hidden[state] = slope[state];
      return;
    }
    const GruGrids grids = given.Grids();
    const float hidden = given.step.hidden[state];
    const GruParts product = given.Load(given.step.product, state);
    const GruValues v = GruForward(given.Load(given.step.projected, state), product, hidden, grids);
    const GruSlopes slopes = GruBackward(v, hidden, slope[state], grids);
    given.Store(slopes.projected, state, to_projected);
    given.Store(ThroughProduct(slopes.product, product, grids), state, to_product);
    to_hidden[state] = slopes.hidden;
  }
};

inline int64_t GruForwardScratch(const GruCase& given) { return 2 * kGruPoints * given.tasks(); }

template <typename Launcher>
void RunGruForward(const GruCase& given, float* after, const Pairs& records, float* scratch,
                   Launcher& launcher) {
  const int64_t tasks = given.tasks();
  const Pairs partials = {scratch, scratch + kGruPoints * tasks};
  launcher.Run(tasks, GruForwardWork{given, after, partials, tasks});
  launcher.Run(kGruPoints, MergeRecordsWork{partials, tasks, records});
}

template <typename Launcher>
void RunGruBackward(const GruCase& given, const float* slope, float* to_projected, float* to_product,
                    float* to_hidden, Launcher& launcher) {
  launcher.Run(given.tasks(), GruBackwardWork{given, slope, to_projected, to_product, to_hidden});
}

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_GRU_WORK_H_
