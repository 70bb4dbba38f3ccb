// Fake quantization on plain pointers. Every function here works on one block of a BlockPlan, so that
// the caller chooses the threads; blocks may run in any order and at the same time.
//
//   y  = (floor((clamp(x, nudged_min, nudged_max) - nudged_min) / scale - zero_level + 0.5)) * scale
//   dx = dy where nudged_min <= x <= nudged_max, else 0
//   dmin = sum of dy where x < nudged_min,  dmax = sum of dy where x > nudged_max
//
// as in TensorFlow's fake-quant ops, to the bit. Per tensor TensorFlow divides by the scale and per
// channel it multiplies with the inverse; so do these kernels. Arithmetic and records are float32 for
// every element type: float, Half and BFloat16.
#ifndef DQAT_CORE_FAKE_QUANT_H_
#define DQAT_CORE_FAKE_QUANT_H_

#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "core/layout.h"
#include "core/quantization.h"
#include "core/small_floats.h"

namespace dqat::core {

// The grids of all channels as one array per field, which is what vector code can load; for an interleaved
// layout one entry for each column of `BlockPlan::repeat` rows.
class GridTable {
 public:
  GridTable(const ChannelLayout& layout, const BlockPlan& plan);

  // Of one channel; every channel must be set.
  void Set(int64_t channel, const Grid& grid);
  // Of all channels. False where a range is invalid.
  bool SetAll(const float* min, const float* max, const QuantizerSpec& spec);
  int64_t channels() const { return channels_; }
  // True where some channel has no range yet and passes its values through.
  bool any_passthrough() const { return any_passthrough_; }

  const float* nudged_min() const { return Field(0); }
  const float* nudged_max() const { return Field(1); }
  const float* scale() const { return Field(2); }
  const float* inv_scale() const { return Field(3); }
  const float* zero_level() const { return Field(4); }
  const float* grad_min() const { return Field(5); }
  const float* grad_max() const { return Field(6); }
  const float* passthrough() const { return Field(7); }  // 1 or 0

 private:
  static constexpr int64_t kFields = 8;
  struct Free {
    void operator()(float* data) const { ::operator delete[](data, kAlignment); }
  };
  // A cache line, so that no vector is read from two.
  static constexpr std::align_val_t kAlignment{64};
  float* Field(int64_t index) const { return data_.get() + index * stride_; }

  int64_t channels_;
  int64_t run_;      // consecutive entries of one channel
  int64_t columns_;  // entries of one row
  int64_t entries_;
  int64_t stride_;  // from one field to the next
  std::unique_ptr<float[], Free> data_;
  bool any_passthrough_ = false;
};

// Partial records, `BlockPlan::partials` long each. A channel that has met a NaN or an Inf has the record
// (-inf, +inf): it survives every later merge, and an all-reduce by Max of [max, -min].
struct RecordPartials {
  float* min = nullptr;
  float* max = nullptr;
  // Of an interleaved layout: the block whose partial this one continues, because the same thread runs both
  // one after the other. -1: every block has its own. Fewer partials are merged faster.
  int64_t continued = -1;
};

// y may be x unless a channel passes its values through. `record` may be null pointers; then nothing is
// tracked.
template <typename T>
void FakeQuantBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const GridTable& grids,
                    const T* x, T* y, RecordPartials record);

// Tracks without quantizing.
template <typename T>
void MinMaxBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block, const T* x,
                 RecordPartials record);

// dx may be dy. dmin and dmax hold `BlockPlan::partials` partial sums each.
template <typename T>
void FakeQuantGradBlock(const ChannelLayout& layout, const BlockPlan& plan, int64_t block,
                        const GridTable& grids, const T* dy, const T* x, T* dx, float* dmin, float* dmax);

// Combines the partials of all blocks, in block order, into one value per channel. `started`, where given,
// are the only blocks that have a record partial of their own.
void MergeRecords(const ChannelLayout& layout, const BlockPlan& plan, RecordPartials partials, float* min,
                  float* max, const std::vector<int64_t>* started = nullptr);
void MergeSums(const ChannelLayout& layout, const BlockPlan& plan, const float* partials, float* sum);

}  // namespace dqat::core

#endif  // DQAT_CORE_FAKE_QUANT_H_
