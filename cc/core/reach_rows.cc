// Compiled once per instruction set, see rows.cc.
#include "core/reach_rows.h"

#include "core/extremes.h"
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace dqat::core::DQAT_INSTRUCTION_SET {
namespace {

// Comparisons of as many floats as a vector holds, and what holds of them as bits.
#if defined(__AVX512F__)
constexpr int kVector = 16;
using Floats = __m512;
using Holds = __mmask16;
inline Floats Load(const float* x) { return _mm512_loadu_ps(x); }
inline Floats Splat(float x) { return _mm512_set1_ps(x); }
inline Holds Above(Floats x, Floats y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ); }
inline Holds AtLeast(Floats x, Floats y) { return _mm512_cmp_ps_mask(x, y, _CMP_GE_OQ); }
inline Holds Both(Holds a, Holds b) { return a & b; }
inline Holds Either(Holds a, Holds b) { return a | b; }
inline uint32_t Bits(Holds holds) { return holds; }
#elif defined(__AVX__)
constexpr int kVector = 8;
using Floats = __m256;
using Holds = __m256;
inline Floats Load(const float* x) { return _mm256_loadu_ps(x); }
inline Floats Splat(float x) { return _mm256_set1_ps(x); }
inline Holds Above(Floats x, Floats y) { return _mm256_cmp_ps(x, y, _CMP_GT_OQ); }
inline Holds AtLeast(Floats x, Floats y) { return _mm256_cmp_ps(x, y, _CMP_GE_OQ); }
inline Holds Both(Holds a, Holds b) { return _mm256_and_ps(a, b); }
inline Holds Either(Holds a, Holds b) { return _mm256_or_ps(a, b); }
inline uint32_t Bits(Holds holds) { return static_cast<uint32_t>(_mm256_movemask_ps(holds)); }
#elif defined(__SSE__)
constexpr int kVector = 4;
using Floats = __m128;
using Holds = __m128;
inline Floats Load(const float* x) { return _mm_loadu_ps(x); }
inline Floats Splat(float x) { return _mm_set1_ps(x); }
inline Holds Above(Floats x, Floats y) { return _mm_cmpgt_ps(x, y); }
inline Holds AtLeast(Floats x, Floats y) { return _mm_cmpge_ps(x, y); }
inline Holds Both(Holds a, Holds b) { return _mm_and_ps(a, b); }
inline Holds Either(Holds a, Holds b) { return _mm_or_ps(a, b); }
inline uint32_t Bits(Holds holds) { return static_cast<uint32_t>(_mm_movemask_ps(holds)); }
#endif

// SlopeReach of kReachValues values.
template <bool kPositive>
inline uint64_t WordOf(const float* x, const SlopeBounds& bounds) {
#if defined(__SSE__)
  const Floats lowest = Splat(bounds.lowest), highest = Splat(bounds.highest);
  const Floats least = Splat(bounds.below), most = Splat(bounds.above);
  uint32_t lower = 0, upper = 0;
  for (int i = 0; i < kReachValues; i += kVector) {
    const Floats value = Load(x + i);
    const Holds inside =
        Both(kPositive ? Above(value, lowest) : AtLeast(value, lowest), AtLeast(highest, value));
    const Holds above = Above(value, most);
    // BoundSlopes: where only positive values pass, none is below.
    const Holds outside = kPositive ? above : Either(above, Above(least, value));
    lower |= Bits(Either(inside, above)) << i;
    upper |= Bits(outside) << i;
  }
  return lower | static_cast<uint64_t>(upper) << kReachValues;
#else
  uint64_t word = 0;
  for (int i = 0; i < kReachValues; ++i) word |= SlopeReach<kPositive>(x[i], bounds, i);
  return word;
#endif
}

// Of the first n values alone.
inline uint64_t FirstOf(uint64_t word, int64_t n) {
  const uint64_t bits = (uint64_t{1} << n) - 1;
  return word & (bits | bits << kReachValues);
}

// The last n values of a row, fewer than a word's, and the last of them again for the rest: so their extremes
// are the row's.
struct LastValues {
  float values[kReachValues];
  LastValues(const float* x, int64_t n) {
    for (int64_t i = 0; i < kReachValues; ++i) values[i] = x[i < n ? i : n - 1];
  }
  void Store(int64_t n, float* y) const {
    for (int64_t i = 0; i < n; ++i) y[i] = values[i];
  }
};

template <bool kPositive>
void ReachRow(int64_t n, const SlopeBounds& all_bounds, const float* x, uint64_t* reach) {
  const SlopeBounds bounds = all_bounds;
  for (; n >= kReachValues; n -= kReachValues, x += kReachValues) *reach++ = WordOf<kPositive>(x, bounds);
  if (n > 0) *reach = FirstOf(WordOf<kPositive>(LastValues(x, n).values, bounds), n);
}

void Reach(int64_t n, const SlopeBounds& bounds, const float* x, uint64_t* reach) {
  if (bounds.positive) {
    ReachRow<true>(n, bounds, x, reach);
  } else {
    ReachRow<false>(n, bounds, x, reach);
  }
}

// Extremes by lane; a word's values are taken in parts as long.
constexpr int kExtremes = 16;
struct LaneExtremes {
  int32_t highest[kExtremes];
  uint32_t lowest[kExtremes], nearest[kExtremes];
};

// One word's values. Comparisons wait for no division, and cost little beside them.
template <bool kDivide, bool kPositive>
inline uint64_t QuantizeWord(const RowGrid& grid, float lowest, float highest, const SlopeBounds& bounds,
                             const float* x, float* y, LaneExtremes* found) {
  const uint64_t word = WordOf<kPositive>(x, bounds);  // before y overwrites x
  for (int part = 0; part < kReachValues; part += kExtremes) {
#pragma omp simd
    for (int lane = 0; lane < kExtremes; ++lane) {
      const float value = x[part + lane];
      const uint32_t bits = BitsOfFloat(value);
      const int32_t signed_bits = static_cast<int32_t>(bits);
      found->highest[lane] = signed_bits > found->highest[lane] ? signed_bits : found->highest[lane];
      found->lowest[lane] = bits > found->lowest[lane] ? bits : found->lowest[lane];
      found->nearest[lane] = bits < found->nearest[lane] ? bits : found->nearest[lane];
      y[part + lane] = QuantizeClamped<kDivide>(Clamp(value, lowest, highest), grid.nudged_min, grid.scale,
                                                grid.inv_scale, grid.zero_level);
    }
  }
  return word;
}

template <bool kDivide, bool kPositive>
void QuantizeRow(int64_t n, const RowGrid& one_grid, Activation activation, const SlopeBounds& all_bounds,
                 const float* x, float* y, uint64_t* reach, float* min, float* max) {
  if (n == 0) return;
  const RowGrid grid = one_grid;
  const SlopeBounds bounds = all_bounds;
  // A nudged range contains 0, so that both clamp at once.
  const float lowest = Activate(grid.nudged_min, activation);
  const float highest = Activate(grid.nudged_max, activation);
  LaneExtremes found;
  for (int lane = 0; lane < kExtremes; ++lane) {
    found.highest[lane] = kNoHighest;
    found.lowest[lane] = kNoLowest;
    found.nearest[lane] = kNoNearest;
  }
  for (; n >= kReachValues; n -= kReachValues, x += kReachValues, y += kReachValues) {
    *reach++ = QuantizeWord<kDivide, kPositive>(grid, lowest, highest, bounds, x, y, &found);
  }
  if (n > 0) {
    LastValues last(x, n);
    *reach = FirstOf(
        QuantizeWord<kDivide, kPositive>(grid, lowest, highest, bounds, last.values, last.values, &found), n);
    last.Store(n, y);
  }
  for (int lane = 0; lane < kExtremes; ++lane) {
    MergeExtremes({found.highest[lane], found.lowest[lane], found.nearest[lane]}, activation, min, max);
  }
}

void Quantize(int64_t n, const RowGrid& grid, bool divide, Activation activation, const SlopeBounds& bounds,
              const float* x, float* y, uint64_t* reach, float* min, float* max) {
  // With a scale of 0 (range (0, 0)) the inverse, 0 as well, gives TensorFlow's 0.
  const auto row = divide && grid.scale != 0.0f
                       ? (bounds.positive ? QuantizeRow<true, true> : QuantizeRow<true, false>)
                       : (bounds.positive ? QuantizeRow<false, true> : QuantizeRow<false, false>);
  row(n, grid, activation, bounds, x, y, reach, min, max);
}

// A lane for each value of a word: rows.cc's lanes, so that sums are the same bits.
constexpr int kLanes = kReachValues;

inline void WordGradient(const float* dy, uint64_t word, float* dx, float (&below)[kLanes],
                         float (&above)[kLanes]) {
  const ReachBits bits = ReadReach(word);
  if ((bits.to_min | bits.to_max) != 0) {  // seldom
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) {
      below[lane] += (bits.to_min & (1u << lane)) != 0 ? dy[lane] : 0.0f;
      above[lane] += (bits.to_max & (1u << lane)) != 0 ? dy[lane] : 0.0f;
    }
  }
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    dx[lane] = dy[lane] * ((bits.to_x & (1u << lane)) != 0 ? 1.0f : 0.0f);  // as SlopeToX has it
  }
}

void Gradient(int64_t n, const float* dy, const uint64_t* reach, float* dx, float* dmin, float* dmax) {
  float below[kLanes] = {}, above[kLanes] = {};
  for (; n >= kLanes; n -= kLanes, dy += kLanes, dx += kLanes) WordGradient(dy, *reach++, dx, below, above);
  if (n > 0) {
    LastValues last(dy, n);
    WordGradient(last.values, FirstOf(*reach, n), last.values, below, above);
    last.Store(n, dx);
  }
  float below_sum = 0.0f, above_sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) {
    below_sum += below[lane];
    above_sum += above[lane];
  }
  *dmin += below_sum;
  *dmax += above_sum;
}

}  // namespace

const ReachRowKernels kReachRowKernels = {Quantize, Reach, Gradient};

}  // namespace dqat::core::DQAT_INSTRUCTION_SET
