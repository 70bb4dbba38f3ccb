// How the CUDA kernels cut a tensor [outer, channels, inner] into thread blocks, and what each thread visits.
//
// The cut depends on the shape alone, never on the device, and partial results are merged in a fixed order:
// so sums are the same bits in every run. There are two ways to cut, and neighbouring threads read
// neighbouring elements in both:
// - Runs: a block owns one slice of one channel's elements, and leaves one partial.
// - Columns, where the channels alternate too quickly for that (inner is small): the tensor is a matrix of
//   [outer, channels * inner]. A block owns a tile of columns and a slice of rows; each of its threads stays
//   in one column and leaves a partial.
#ifndef DQAT_CORE_CUDA_PLAN_H_
#define DQAT_CORE_CUDA_PLAN_H_

#include <algorithm>
#include <cstdint>

#include "core/host_device.h"
#include "core/layout.h"

namespace dqat::core::cuda {

// The elements that one thread visits: `count` times Next().
struct Walk {
  int64_t channel = 0;
  int64_t count = 0;
  int64_t offset = 0;
  int64_t step = 0;
  // The place within a run of `inner` elements. `jump` leads from the end of a run to the channel's next one.
  int64_t place = 0, place_step = 0, inner = 1, jump = 0;

  // Without a division: 64-bit ones cost as much as the memory access.
  DQAT_HOST_DEVICE int64_t Next() {
    const int64_t current = offset;
    offset += step;
    place += place_step;
    if (place >= inner) {
      place -= inner;
      offset += jump;
    }
    --count;
    return current;
  }
};

struct Plan {
  static constexpr int kThreads = 256;
  // About what one large GPU holds at a time.
  static constexpr int64_t kWantedBlocks = 1024;
  // A thread has this many elements before more blocks share a channel.
  static constexpr int64_t kThreadElements = 16;
  // A warp reads runs of this length in one piece.
  static constexpr int64_t kLongRun = 32;
  // A tile is this many rows high where the tensor is: so it is 64 columns wide.
  static constexpr int64_t kTileRows = 4;

  explicit Plan(const ChannelLayout& layout)
      : outer(layout.outer),
        channels(layout.channels),
        inner(layout.inner),
        by_column(channels > 1 && inner < kLongRun) {
    if (layout.size() == 0) return;
    if (by_column) {
      columns = channels * inner;
      const int64_t widest = kThreads / std::min(outer, kTileRows);
      tiles = Quotient(columns, widest);
      tile_columns = Quotient(columns, tiles);
      tile_rows = std::min(outer, kThreads / tile_columns);
      Slice(outer, tile_rows, tiles);
      num_blocks = tiles * slices;
      partials_per_channel = slices * tile_rows * inner;
    } else {
      Slice(outer * inner, kThreads, channels);
      num_blocks = channels * slices;
      partials_per_channel = slices;
    }
    num_partials = channels * partials_per_channel;
  }

  DQAT_HOST_DEVICE Walk ThreadWalk(int64_t block, int thread) const {
    Walk walk;
    if (by_column) {
      const int64_t column = Column(block, thread), row = thread / tile_columns;
      if (column < 0) return walk;
      const int64_t slice = block / tiles;
      walk.count = SliceCount(slice, row, outer, tile_rows);
      walk.channel = column / inner;
      walk.offset = (slice * slice_size + row) * columns + column;
      walk.step = tile_rows * columns;
      return walk;
    }
    const int64_t slice = block % slices, first = slice * slice_size + thread;
    walk.count = SliceCount(slice, thread, outer * inner, kThreads);
    walk.channel = block / slices;
    walk.offset = (first / inner * channels + walk.channel) * inner + first % inner;
    walk.step = kThreads / inner * channels * inner + kThreads % inner;
    walk.place = first % inner;
    walk.place_step = kThreads % inner;
    walk.inner = inner;
    walk.jump = (channels - 1) * inner;
    return walk;
  }

  // Where a thread's partial goes when cut by columns; -1 for a thread outside the tile.
  DQAT_HOST_DEVICE int64_t ThreadPartial(int64_t block, int thread) const {
    const int64_t column = Column(block, thread), row = thread / tile_columns;
    return column < 0 ? -1 : (block / tiles * tile_rows + row) * columns + column;
  }

  // Where the i-th of a channel's partials stands.
  DQAT_HOST_DEVICE int64_t ChannelPartial(int64_t channel, int64_t i) const {
    if (by_column) return i / inner * columns + channel * inner + i % inner;
    return channel * slices + i;
  }

  int64_t outer, channels, inner;
  bool by_column;
  int64_t slices = 0, slice_size = 0;  // of a channel's elements, or of the rows
  int64_t columns = 0, tiles = 0, tile_columns = 1, tile_rows = 1;
  int64_t num_blocks = 0;
  int64_t partials_per_channel = 0, num_partials = 0;

 private:
  static int64_t Quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }

  // Cuts `size` into slices of a multiple of `stride`, where there are `others` blocks for each slice.
  void Slice(int64_t size, int64_t stride, int64_t others) {
    const int64_t wanted = std::max<int64_t>(1, kWantedBlocks / others);
    const int64_t most = std::min(wanted, Quotient(size, stride * kThreadElements));
    slice_size = Quotient(Quotient(size, most), stride) * stride;
    slices = Quotient(size, slice_size);
  }

  // How many of first, first + stride, ... lie in a slice.
  DQAT_HOST_DEVICE int64_t SliceCount(int64_t slice, int64_t first, int64_t size, int64_t stride) const {
    const int64_t rest = size - slice * slice_size;
    const int64_t length = rest < slice_size ? rest : slice_size;
    return first < length ? (length - first + stride - 1) / stride : 0;
  }

  DQAT_HOST_DEVICE int64_t Column(int64_t block, int thread) const {
    const int64_t column = block % tiles * tile_columns + thread % tile_columns;
    return column < columns && thread / tile_columns < tile_rows ? column : -1;
  }
};

}  // namespace dqat::core::cuda

#endif  // DQAT_CORE_CUDA_PLAN_H_
