// How a tensor is walked: [outer, channels, inner], row-major, and cut into blocks.
//
// Blocks depend on the shape alone, never on the number of threads, and partial sums are combined in
// block order: so sums are the same bits however many threads run.
#ifndef DQAT_CORE_LAYOUT_H_
#define DQAT_CORE_LAYOUT_H_

#include <algorithm>
#include <cstdint>

namespace dqat::core {

// Floats from the start of one array to the next, where several of n floats are walked side by side: whole
// cache lines, and for long arrays a distance that no two of them share within a page. A multiple of 4 KiB
// would give all arrays' i-th elements the same few places in the first-level cache.
inline int64_t ArrayStride(int64_t n) {
  constexpr int64_t kLine = 16, kLinesOfPage = 64, kDistance = 17;
  const int64_t lines = (n + kLine - 1) / kLine;
  if (lines < kDistance) return lines * kLine;
  return (lines + (kLinesOfPage + kDistance - lines % kLinesOfPage) % kLinesOfPage) * kLine;
}

// A group of channels that share a range counts as one channel whose `inner` is so much longer.
struct ChannelLayout {
  static constexpr int64_t kShortInner = 32;

  int64_t outer = 1;
  int64_t channels = 1;
  int64_t inner = 1;
  bool per_channel = channels > 1;  // also true of a tensor that has a channel axis of size 1

  int64_t size() const { return outer * channels * inner; }
  // Walked in rows of all channels, because one channel's neighbouring elements are few or alone.
  bool interleaved() const { return per_channel && inner < kShortInner; }
  // TensorFlow's per-tensor op divides by the scale, its per-channel op multiplies with the inverse.
  bool divides_by_scale() const { return !per_channel; }
  // Elements of such a row.
  int64_t columns() const { return channels * inner; }
};

// A block is a range of rows. In an interleaved layout a row is one [channels, inner] matrix, and `repeat`
// rows are handled as one where rows are short. Otherwise a row is a piece of at most kMaxRowElements of
// one channel's contiguous [inner] vector.
struct BlockPlan {
  static constexpr int64_t kBlockElements = 32768;
  static constexpr int64_t kMaxRowElements = 16384;
  static constexpr int64_t kMaxInterleavedBlocks = 64;
  static constexpr int64_t kLongRow = 128;

  explicit BlockPlan(const ChannelLayout& layout) {
    if (layout.size() == 0) return;
    if (layout.interleaved()) {
      rows = layout.outer;
      repeat = std::min(rows, std::max<int64_t>(1, kLongRow / layout.columns()));
      const int64_t wanted = (layout.size() + kBlockElements - 1) / kBlockElements;
      const int64_t blocks = std::min({wanted, kMaxInterleavedBlocks, rows});
      rows_per_block = (rows + blocks - 1) / blocks;
      rows_per_block = (rows_per_block + repeat - 1) / repeat * repeat;
      block_elements = rows_per_block * layout.columns();
      num_blocks = (rows + rows_per_block - 1) / rows_per_block;
      partials = num_blocks * repeat * layout.columns();
    } else {
      pieces_per_row = (layout.inner + kMaxRowElements - 1) / kMaxRowElements;
      rows = layout.outer * layout.channels * pieces_per_row;
      const int64_t row_elements = std::min(layout.inner, kMaxRowElements);
      rows_per_block = std::max<int64_t>(1, kBlockElements / row_elements);
      block_elements = rows_per_block * row_elements;
      num_blocks = (rows + rows_per_block - 1) / rows_per_block;
      partials = rows;
    }
  }

  int64_t rows = 0;
  int64_t repeat = 1;          // short rows that are handled as one
  int64_t pieces_per_row = 1;  // pieces that one channel's contiguous vector is cut into
  int64_t rows_per_block = 0;
  int64_t block_elements = 0;  // of a full block
  int64_t num_blocks = 0;
  int64_t partials = 0;  // number of partial records or sums that the blocks write together
};

}  // namespace dqat::core

#endif  // DQAT_CORE_LAYOUT_H_
