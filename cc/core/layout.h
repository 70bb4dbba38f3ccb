// How a tensor is walked: [outer, channels, inner], row-major, and cut into blocks.
//
// Blocks depend on the shape alone, never on the number of threads, and partial sums are combined
// in block order: so sums are the same bits however many threads run.
#ifndef DQAT_CORE_LAYOUT_H_
#define DQAT_CORE_LAYOUT_H_

#include <algorithm>
#include <cstdint>

namespace dqat::core {

struct ChannelLayout {
  int64_t outer = 1;
  int64_t channels = 1;  // 1 when the range is per tensor
  int64_t inner = 1;
  bool per_channel = channels > 1;  // also true of a tensor that has a channel axis of size 1

  int64_t size() const { return outer * channels * inner; }
  // True where neighbouring elements belong to different channels (channel axis last).
  bool interleaved() const { return inner == 1 && channels > 1; }
  // TensorFlow's per-tensor op divides by the scale, its per-channel op multiplies with the inverse.
  bool divides_by_scale() const { return !per_channel; }
};

// A block is a range of rows. In an interleaved layout a row is one [channels] vector; otherwise it
// is a piece of at most kMaxRowElements of one channel's contiguous [inner] vector.
struct BlockPlan {
  static constexpr int64_t kBlockElements = 32768;
  static constexpr int64_t kMaxRowElements = 16384;
  static constexpr int64_t kMaxInterleavedBlocks = 64;

  explicit BlockPlan(const ChannelLayout& layout) {
    if (layout.size() == 0) return;
    if (layout.interleaved()) {
      rows = layout.outer;
      row_elements = layout.channels;
      pieces_per_row = 1;
      const int64_t wanted = (layout.size() + kBlockElements - 1) / kBlockElements;
      const int64_t blocks = std::min({wanted, kMaxInterleavedBlocks, rows});
      rows_per_block = (rows + blocks - 1) / blocks;
    } else {
      pieces_per_row = (layout.inner + kMaxRowElements - 1) / kMaxRowElements;
      rows = layout.outer * layout.channels * pieces_per_row;
      row_elements = std::min(layout.inner, kMaxRowElements);
      rows_per_block = std::max<int64_t>(1, kBlockElements / row_elements);
    }
    num_blocks = (rows + rows_per_block - 1) / rows_per_block;
    partials = layout.interleaved() ? num_blocks * layout.channels : rows;
  }

  int64_t rows = 0;
  int64_t row_elements = 0;    // of a full row; the last piece of a channel may be shorter
  int64_t pieces_per_row = 1;  // pieces that one channel's contiguous vector is cut into
  int64_t rows_per_block = 0;
  int64_t num_blocks = 0;
  int64_t partials = 0;  // number of partial records or sums that the blocks write together
};

}  // namespace dqat::core

#endif  // DQAT_CORE_LAYOUT_H_
