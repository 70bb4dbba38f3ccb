// What cc/core/fake_quant.h and quantization.h must compute, written a second time as plainly as it can be:
// one loop over all elements, no blocks, no vectors, sums in double. The tests hold the fast code against it.
#ifndef DQAT_CORE_FAKE_QUANT_REFERENCE_H_
#define DQAT_CORE_FAKE_QUANT_REFERENCE_H_

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/layout.h"
#include "core/quantization.h"

namespace dqat::core::reference {

// The channel of an element of a row-major [outer, channels, inner] tensor.
inline int64_t ChannelOf(const ChannelLayout& layout, int64_t index) {
  return (index / layout.inner) % layout.channels;
}

// The value of a level is level * scale, counted from the level of 0; (0, 0) and ranges that have no scale in
// float32 know only the value 0.
inline float FakeQuant(float x, const Grid& grid, bool divide) {
  if (grid.passthrough) return x;
  if (std::isnan(x)) return x;
  if (grid.scale == 0.0f) return 0.0f;
  const float from_min = std::fmin(std::fmax(x, grid.nudged_min), grid.nudged_max) - grid.nudged_min;
  const float steps = divide ? from_min / grid.scale : from_min * grid.inv_scale;
  return std::floor(steps - grid.zero_level + 0.5f) * grid.scale;
}

inline std::vector<float> FakeQuant(const ChannelLayout& layout, const std::vector<Grid>& grids,
                                    const std::vector<float>& x) {
  std::vector<float> y(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = FakeQuant(x[i], grids[ChannelOf(layout, i)], layout.divides_by_scale());
  }
  return y;
}

// Per channel: the smallest and largest value, the empty range where there is none, (-inf, +inf) where a
// value is not finite.
inline std::vector<Range> Records(const ChannelLayout& layout, const std::vector<float>& x) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<Range> records(layout.channels);
  std::vector<bool> bad(layout.channels, false);
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t channel = ChannelOf(layout, i);
    Range& record = records[channel];
    if (!std::isfinite(x[i])) bad[channel] = true;
    if (x[i] < record.min) record.min = x[i];
    if (x[i] > record.max) record.max = x[i];
  }
  for (int64_t channel = 0; channel < layout.channels; ++channel) {
    if (bad[channel]) records[channel] = {-kInfinity, kInfinity};
    records[channel].min += 0.0f;
    records[channel].max += 0.0f;
  }
  return records;
}

inline float Activated(float x, Activation activation) {
  if (activation == Activation::kLinear || std::isnan(x)) return x;
  const float most = activation == Activation::kRelu6 ? 6.0f : std::numeric_limits<float>::infinity();
  return std::fmin(std::fmax(x, 0.0f), most) + 0.0f;  // never -0
}

inline std::vector<float> Activated(std::vector<float> x, Activation activation) {
  for (float& value : x) value = Activated(value, activation);
  return x;
}

struct Gradients {
  std::vector<float> dx;
  std::vector<double> dmin, dmax;    // per channel
  std::vector<double> below, above;  // the same sums of |dy|: what rounding errors are measured against
};

inline Gradients FakeQuantGrad(const ChannelLayout& layout, const std::vector<Grid>& grids,
                               const std::vector<float>& dy, const std::vector<float>& inputs,
                               Activation activation = Activation::kLinear) {
  const std::vector<float> x = Activated(inputs, activation);
  const std::vector<double> zeros(layout.channels, 0.0);
  Gradients gradients = {std::vector<float>(x.size()), zeros, zeros, zeros, zeros};
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t channel = ChannelOf(layout, i);
    const Grid& grid = grids[channel];
    const bool inside = x[i] >= grid.grad_min && x[i] <= grid.grad_max;
    const bool passes = activation == Activation::kLinear ||
                        (x[i] > 0.0f && (activation == Activation::kRelu || x[i] < 6.0f));
    gradients.dx[i] = dy[i] * (inside ? 1.0f : 0.0f) * (passes ? 1.0f : 0.0f);
    if (x[i] < grid.grad_min) {
      gradients.dmin[channel] += dy[i];
      gradients.below[channel] += std::fabs(dy[i]);
    }
    if (x[i] > grid.grad_max) {
      gradients.dmax[channel] += dy[i];
      gradients.above[channel] += std::fabs(dy[i]);
    }
  }
  return gradients;
}

}  // namespace dqat::core::reference

#endif  // DQAT_CORE_FAKE_QUANT_REFERENCE_H_
