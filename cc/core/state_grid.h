// The grid of a recurrent state, or of what is on the way to one, in the form that its kernels take.
#ifndef DQAT_CORE_STATE_GRID_H_
#define DQAT_CORE_STATE_GRID_H_

#include "core/lstm_element.h"
#include "core/quantization.h"

namespace dqat::core {

DQAT_HOST_DEVICE inline StateGrid MakeStateGrid(const Grid& grid) {
  return {grid.nudged_min, grid.nudged_max, grid.scale,    grid.scale == 0.0f ? 1.0f : grid.scale,
          grid.zero_level, grid.grad_min,   grid.grad_max, grid.passthrough ? 1.0f : 0.0f};
}

}  // namespace dqat::core

#endif  // DQAT_CORE_STATE_GRID_H_
