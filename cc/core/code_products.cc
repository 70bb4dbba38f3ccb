#include "core/code_products.h"

#include <algorithm>
#include <cstring>

#include "core/instruction_set.h"
#include "core/products.h"

namespace dqat::core {
namespace {

#ifdef DQAT_X86_INSTRUCTION_SETS
const CodeKernels& WidestTiles() {
  static const bool has_vnni = __builtin_cpu_supports("avx512vnni");
  return has_vnni ? avx512vnni::kCodeKernels : avx512::kCodeKernels;
}
#endif

}  // namespace

const CodeKernels& CodeTiles() {
#ifdef DQAT_X86_INSTRUCTION_SETS
  const char* name = InstructionSet();
  if (std::strcmp(name, "avx512") == 0) return WidestTiles();
  if (std::strcmp(name, "avx2") == 0) return avx2::kCodeKernels;
#endif
  return baseline::kCodeKernels;
}

std::vector<const CodeKernels*> AvailableCodeTiles() {
  std::vector<const CodeKernels*> all = {&baseline::kCodeKernels};
#ifdef DQAT_X86_INSTRUCTION_SETS
  const size_t sets = AvailableInstructionSets().size();
  if (sets > 1) all.push_back(&avx2::kCodeKernels);
  if (sets > 2) all.push_back(&avx512::kCodeKernels);
  if (sets > 2 && &WidestTiles() != all.back()) all.push_back(&WidestTiles());
#endif
  return all;
}

void MultiplyCodes(int64_t rows, int64_t width, int64_t pairs, const int16_t* left, int64_t left_stride,
                   const int8_t* panel, const float* factors, float* results, int64_t stride) {
  const CodeKernels& kernels = CodeTiles();
  ForEachTile(rows, [&](int64_t row, int64_t height) {
    const int16_t* part = left + row * left_stride;
    float* target = results + row * stride;
    if (width == kPanelColumns) {
      kernels.tile(height, pairs, part, left_stride, panel, factors, target, stride);
      return;
    }
    float whole[kTileRows * kPanelColumns];
    kernels.tile(height, pairs, part, left_stride, panel, factors, whole, kPanelColumns);
    for (int64_t r = 0; r < height; ++r) std::copy_n(whole + r * kPanelColumns, width, target + r * stride);
  });
}

}  // namespace dqat::core
