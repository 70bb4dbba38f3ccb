#include "core/lstm_tables.h"

#include <array>
#include <memory>
#include <mutex>

namespace dqat::core {
namespace {

constexpr int kCodes = 1 << 16;

// A function at all codes, once somebody asks.
class Table {
 public:
  template <typename Function>
  const float* Get(Function function) {
    std::call_once(once_, [&] {
      values_ = std::make_unique<float[]>(kCodes);
      for (int code = 0; code < kCodes; ++code) {
        values_[code] = function(static_cast<int16_t>(code - kCodes / 2)) * kQ15;
      }
    });
    return values_.get() + kCodes / 2;
  }

 private:
  std::once_flag once_;
  std::unique_ptr<float[]> values_;
};

const float* TanhTable(int integer_bits) {
  static std::array<Table, 7> tables;
  return tables[integer_bits].Get([&](int16_t x) { return FixedPointTanh(x, integer_bits); });
}

}  // namespace

LstmTables LstmTablesFor(int cell_exponent) {
  static Table logistic;
  return {logistic.Get(FixedPointLogistic), TanhTable(3), TanhTable(15 + cell_exponent)};
}

}  // namespace dqat::core
