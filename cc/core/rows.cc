// Compiled once per instruction set with -DDQAT_INSTRUCTION_SET=<namespace>; see rows.h for why
// nothing but C headers is included here (element.h keeps to it too). -fno-trapping-math lets the compiler
// turn floorf into an instruction, and `omp simd` lets it reorder min and max, which are the same bits in any
// order but for the sign of zero (MergeRecords removes it). Sums are never reordered: they run in kLanes
// lanes on every instruction set, added up in lane order.
#include "core/rows.h"

#include "core/extremes.h"

#define DQAT_STRINGIFY_(x) #x
#define DQAT_STRINGIFY(x) DQAT_STRINGIFY_(x)

namespace dqat::core::DQAT_INSTRUCTION_SET {
namespace {

constexpr int kLanes = 32;

GridCounts MakeGrids(int64_t n, float quant_min, float quant_max, const float* min, const float* max,
                     const GridArrays& arrays) {
  const GridArrays out = arrays;
  const float infinity = __builtin_inff();
  int invalid = 0, empty_ranges = 0;
#pragma omp simd reduction(+ : invalid, empty_ranges)
  for (int64_t i = 0; i < n; ++i) {
    const float low = min[i], high = max[i], size = high - low;
    const bool empty = (low == infinity) & (high == -infinity);
    // As IsValid has it: a difference that is finite is one of finite numbers.
    const bool valid = empty | ((size - size == 0.0f) & ((low < high) | ((low == 0.0f) & (high == 0.0f))));
    invalid += valid ? 0 : 1;
    empty_ranges += empty ? 1 : 0;
    const GridNumbers numbers = NudgeRange(low, high, quant_min, quant_max);
    const bool has_scale = numbers.scale > 0.0f;
    out.nudged_min[i] = numbers.nudged_min;
    out.nudged_max[i] = numbers.nudged_max;
    out.scale[i] = numbers.scale;
    out.inv_scale[i] = numbers.inv_scale;
    out.zero_level[i] = numbers.zero_level;
    out.grad_min[i] = has_scale ? numbers.nudged_min : -infinity;
    out.grad_max[i] = has_scale ? numbers.nudged_max : infinity;
    out.passthrough[i] = empty ? 1.0f : 0.0f;
  }
  return {invalid, empty_ranges};
}

template <bool kDivide, bool kTrack>
void QuantizeRow(int64_t n, const RowGrid& grid, const float* x, float* y, float* min, float* max) {
  const float lo = grid.nudged_min, hi = grid.nudged_max, scale = grid.scale;
  const float inv_scale = grid.inv_scale, zero_level = grid.zero_level;
  int32_t highest = kNoHighest;
  uint32_t lowest = kNoLowest, nearest = kNoNearest;
#pragma omp simd reduction(max : highest, lowest) reduction(min : nearest)
  for (int64_t i = 0; i < n; ++i) {
    const float value = x[i];
    if (kTrack) {
      const uint32_t bits = BitsOfFloat(value);
      const int32_t signed_bits = static_cast<int32_t>(bits);
      highest = signed_bits > highest ? signed_bits : highest;
      lowest = bits > lowest ? bits : lowest;
      nearest = bits < nearest ? bits : nearest;
    }
    y[i] = QuantizeClamped<kDivide>(Clamp(value, lo, hi), lo, scale, inv_scale, zero_level);
  }
  if (kTrack && n > 0) MergeExtremes({highest, lowest, nearest}, Activation::kLinear, min, max);
}

void Quantizes(int64_t n, const RowGrid& grid, bool divide, const float* x, float* y) {
  // With a scale of 0 (range (0, 0)) the inverse, 0 as well, gives TensorFlow's 0.
  if (divide && grid.scale != 0.0f) {
    QuantizeRow<true, false>(n, grid, x, y, nullptr, nullptr);
  } else {
    QuantizeRow<false, false>(n, grid, x, y, nullptr, nullptr);
  }
}

void QuantizesAndTracks(int64_t n, const RowGrid& grid, bool divide, const float* x, float* y, float* min,
                        float* max) {
  if (divide && grid.scale != 0.0f) {
    QuantizeRow<true, true>(n, grid, x, y, min, max);
  } else {
    QuantizeRow<false, true>(n, grid, x, y, min, max);
  }
}

void MinMax(int64_t n, const float* x, float* min, float* max) {
  int32_t highest = kNoHighest;
  uint32_t lowest = kNoLowest, nearest = kNoNearest;
#pragma omp simd reduction(max : highest, lowest) reduction(min : nearest)
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = BitsOfFloat(x[i]);
    const int32_t signed_bits = static_cast<int32_t>(bits);
    highest = signed_bits > highest ? signed_bits : highest;
    lowest = bits > lowest ? bits : lowest;
    nearest = bits < nearest ? bits : nearest;
  }
  if (n > 0) MergeExtremes({highest, lowest, nearest}, Activation::kLinear, min, max);
}

void Gradient(int64_t n, float lo, float hi, const float* dy, const float* x, float* dx, float* dmin,
              float* dmax) {
  float below[kLanes] = {}, above[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane], slope = dy[i + lane];
      below[lane] += SlopeToMin(value, slope, lo);
      above[lane] += SlopeToMax(value, slope, hi);
      dx[i + lane] = SlopeToX(value, slope, lo, hi);
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) {
    const float value = x[i], slope = dy[i];
    below[lane] += SlopeToMin(value, slope, lo);
    above[lane] += SlopeToMax(value, slope, hi);
    dx[i] = SlopeToX(value, slope, lo, hi);
  }
  float below_sum = 0.0f, above_sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) {
    below_sum += below[lane];
    above_sum += above[lane];
  }
  *dmin += below_sum;
  *dmax += above_sum;
}

// So many rows are taken together, so that a channel's grid and record are loaded and stored once for all of
// them: that traffic, within the first-level cache, and not the arithmetic is what a row costs.
constexpr int kJoinedRows = 4;
constexpr int64_t kPageOfFloats = 1024;

template <bool kTrack, int kRows>
void QuantizeJoinedChannels(int64_t n, int64_t stride, const RowGrids& grids, const float* x, float* y,
                            float* min, float* max) {
  const RowGrids all = grids;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float lo = all.nudged_min[i], hi = all.nudged_max[i], scale = all.scale[i];
    const float inv_scale = all.inv_scale[i], zero_level = all.zero_level[i];
    float values[kRows];
    for (int row = 0; row < kRows; ++row) values[row] = x[row * stride + i];
    if (kTrack) {
      float channel_min = min[i], channel_max = max[i];
      for (int row = 0; row < kRows; ++row) {
        const float low = RecordMin(values[row]), high = RecordMax(values[row]);
        channel_min = low < channel_min ? low : channel_min;
        channel_max = high > channel_max ? high : channel_max;
      }
      min[i] = channel_min;
      max[i] = channel_max;
    }
    for (int row = 0; row < kRows; ++row) {
      y[row * stride + i] = Quantize<false>(values[row], lo, hi, scale, inv_scale, zero_level);
    }
  }
}

template <bool kTrack>
void QuantizeChannels(int64_t rows, int64_t n, const RowGrids& grids, const float* x, float* y, float* min,
                      float* max) {
  // A quarter of the rows apart: each of the four is then a stream of its own, which the processor
  // prefetches. Neighbouring short rows would be several streams within one page, which are slower than one
  // row at a time. An odd number of rows apart, so that rows of 2 KiB don't all fall on the same places of
  // the first-level cache; those of whole pages do so anyway.
  const int64_t quarter = rows / kJoinedRows;
  const int64_t distance = n % kPageOfFloats != 0 && quarter % 2 == 0 && quarter > 0 ? quarter - 1 : quarter;
  for (int64_t row = 0; row < distance; ++row) {
    QuantizeJoinedChannels<kTrack, kJoinedRows>(n, distance * n, grids, x + row * n, y + row * n, min, max);
  }
  for (int64_t row = kJoinedRows * distance; row < rows; ++row) {
    QuantizeJoinedChannels<kTrack, 1>(n, n, grids, x + row * n, y + row * n, min, max);
  }
}

void ChannelsQuantize(int64_t rows, int64_t n, const RowGrids& grids, const float* x, float* y) {
  QuantizeChannels<false>(rows, n, grids, x, y, nullptr, nullptr);
}

template <int kRows>
void JoinedChannelsMinMax(int64_t n, int64_t stride, const float* x, float* min, float* max) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    float channel_min = min[i], channel_max = max[i];
    for (int row = 0; row < kRows; ++row) {
      const float low = RecordMin(x[row * stride + i]), high = RecordMax(x[row * stride + i]);
      channel_min = low < channel_min ? low : channel_min;
      channel_max = high > channel_max ? high : channel_max;
    }
    min[i] = channel_min;
    max[i] = channel_max;
  }
}

void ChannelsMinMax(int64_t rows, int64_t n, const float* x, float* min, float* max) {
  const int64_t quarter = rows / kJoinedRows;
  for (int64_t row = 0; row < quarter; ++row) {
    JoinedChannelsMinMax<kJoinedRows>(n, quarter * n, x + row * n, min, max);
  }
  for (int64_t row = kJoinedRows * quarter; row < rows; ++row) {
    JoinedChannelsMinMax<1>(n, n, x + row * n, min, max);
  }
}

// Neighbouring rows, so that a channel's slopes are added up in the order of the rows, joined or not.
template <int kRows>
void JoinedChannelsGradient(int64_t n, const RowGrids& grids, const float* dy, const float* x, float* dx,
                            float* dmin, float* dmax) {
  const float *grad_min = grids.grad_min, *grad_max = grids.grad_max;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float lo = grad_min[i], hi = grad_max[i];
    float below = dmin[i], above = dmax[i], values[kRows], slopes[kRows];
    for (int row = 0; row < kRows; ++row) {
      values[row] = x[row * n + i];
      slopes[row] = dy[row * n + i];
      below += SlopeToMin(values[row], slopes[row], lo);
      above += SlopeToMax(values[row], slopes[row], hi);
    }
    dmin[i] = below;
    dmax[i] = above;
    for (int row = 0; row < kRows; ++row) dx[row * n + i] = SlopeToX(values[row], slopes[row], lo, hi);
  }
}

void ChannelsGradient(int64_t rows, int64_t n, const RowGrids& grids, const float* dy, const float* x,
                      float* dx, float* dmin, float* dmax) {
  int64_t row = 0;  // see QuantizeChannels
  for (; n >= kPageOfFloats && row + kJoinedRows <= rows; row += kJoinedRows) {
    JoinedChannelsGradient<kJoinedRows>(n, grids, dy + row * n, x + row * n, dx + row * n, dmin, dmax);
  }
  for (; row < rows; ++row) {
    JoinedChannelsGradient<1>(n, grids, dy + row * n, x + row * n, dx + row * n, dmin, dmax);
  }
}

template <bool kDivide>
void StepGradientRow(int64_t n, const RowGrid& grid, float levels, const float* dy, const float* x, float* dx,
                     float* dstep) {
  const float lo = grid.nudged_min, hi = grid.nudged_max, scale = grid.scale;
  const float inv_scale = grid.inv_scale, zero_level = grid.zero_level;
  float sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane], slope = dy[i + lane];
      sums[lane] += slope * StepSlope<kDivide>(value, lo, hi, scale, inv_scale, zero_level, levels);
      dx[i + lane] = StepSlopeToX(value, slope, lo, hi, scale);
    }
  }
  for (int lane = 0; i < n; ++i, ++lane) {
    const float value = x[i], slope = dy[i];
    sums[lane] += slope * StepSlope<kDivide>(value, lo, hi, scale, inv_scale, zero_level, levels);
    dx[i] = StepSlopeToX(value, slope, lo, hi, scale);
  }
  float sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  *dstep += sum;
}

void StepGradient(int64_t n, const RowGrid& grid, bool divide, float levels, const float* dy, const float* x,
                  float* dx, float* dstep) {
  if (divide) {
    StepGradientRow<true>(n, grid, levels, dy, x, dx, dstep);
  } else {
    StepGradientRow<false>(n, grid, levels, dy, x, dx, dstep);
  }
}

void ChannelsStepGradient(int64_t rows, int64_t n, const RowGrids& grids, float levels, const float* dy,
                          const float* x, float* dx, float* dstep) {
  const float *lo = grids.nudged_min, *hi = grids.nudged_max, *scale = grids.scale;
  const float *inv_scale = grids.inv_scale, *zero_level = grids.zero_level;
  for (int64_t row = 0; row < rows; ++row, x += n, dy += n, dx += n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const float value = x[i], slope = dy[i];
      dstep[i] +=
          slope * StepSlope<false>(value, lo[i], hi[i], scale[i], inv_scale[i], zero_level[i], levels);
      dx[i] = StepSlopeToX(value, slope, lo[i], hi[i], scale[i]);
    }
  }
}

template <typename T>
void Load(int64_t n, const T* x, float* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = ToFloat(x[i]);
}

template <typename T>
void Store(int64_t n, const float* x, T* y) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) y[i] = FromFloat<T>(x[i]);
}

#if defined(__AVX512F__)
using Vector = float __attribute__((vector_size(64), aligned(4), may_alias));
inline void StreamVector(float* y, Vector x) { __builtin_ia32_movntps512(y, x); }
#elif defined(__AVX__)
using Vector = float __attribute__((vector_size(32), aligned(4), may_alias));
inline void StreamVector(float* y, Vector x) { __builtin_ia32_movntps256(y, x); }
#elif defined(__SSE__)
using Vector = float __attribute__((vector_size(16), aligned(4), may_alias));
inline void StreamVector(float* y, Vector x) { __builtin_ia32_movntps(y, x); }
#endif

void Stream(int64_t n, const float* x, float* y) {
  int64_t i = 0;
#ifdef __SSE__
  constexpr int64_t kVector = sizeof(Vector) / sizeof(float);
  for (; i < n && reinterpret_cast<uintptr_t>(y + i) % sizeof(Vector) != 0; ++i) y[i] = x[i];
  for (; i + kVector <= n; i += kVector) StreamVector(y + i, *reinterpret_cast<const Vector*>(x + i));
#endif
  for (; i < n; ++i) y[i] = x[i];
}

void FinishStream() {
#ifdef __SSE__
  __builtin_ia32_sfence();
#endif
}

}  // namespace

const RowKernels kRowKernels = {
    DQAT_STRINGIFY(DQAT_INSTRUCTION_SET),
    MakeGrids,
    Quantizes,
    QuantizesAndTracks,
    MinMax,
    Gradient,
    ChannelsQuantize,
    QuantizeChannels<true>,
    ChannelsMinMax,
    ChannelsGradient,
    StepGradient,
    ChannelsStepGradient,
    Load<Half>,
    Load<BFloat16>,
    Store<Half>,
    Store<BFloat16>,
    Stream,
    FinishStream,
};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
