// Runs the CUDA kernels' code of the LSTM and of products (core/cuda_lstm_work.h, core/cuda_product_work.h)
// one thread after the other on the CPU, and compares with the CPU's own, to the bit; which needs a processor
// with fused multiply-adds. Prints one line a failure, and exits with 1 after any.
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/cuda_gru_work.h"
#include "core/cuda_lstm_work.h"
#include "core/gru_step.h"
#include "core/lstm.h"
#include "core/products.h"
#include "host_block.h"

namespace dqat::core {
namespace {

using cuda::kNan;

const Parallel kOneThread = {
    1, [](int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& body) { body(0, count); }};

// Stands in for cuda_tasks.cuh's TaskLauncher. Blocks start with whatever the one before left in shared
// memory, at first NaN: a kernel that reads what it has not written is found out.
struct HostLauncher {
  template <typename Work>
  void Run(int64_t tasks, const Work& work) {
    HostBlock block;
    const auto memory = std::make_unique<typename Work::Memory>();
    std::fill_n(reinterpret_cast<unsigned char*>(memory.get()), sizeof(typename Work::Memory), 0xff);
    for (int64_t task = 0; task < tasks; ++task) work.Run(block, task, *memory);
  }
  void Copy(int64_t count, const float* source, float* target) { std::copy_n(source, count, target); }
  void Clear(int64_t count, float* target) { std::fill_n(target, count, 0.0f); }
};

std::vector<float> Normal(int64_t count, int seed, float size = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, size);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

// With memory that is aligned to 64 bytes.
class Workspace {
 public:
  explicit Workspace(int64_t count) : memory_(count + 16) {
    data_ = memory_.data();
    while (reinterpret_cast<uintptr_t>(data_) % 64 != 0) ++data_;
  }
  float* data() { return data_; }

 private:
  std::vector<float> memory_;
  float* data_;
};

struct Options {
  bool masked, backwards, time_major, has_bias;
  Range hidden, cell;
  const float* scales = nullptr;
};

// The results and gradients of an LSTM, by name.
struct Everything {
  explicit Everything(const LstmShape& shape)
      : outputs(shape.rows() * shape.units, kNan),
        hidden(shape.batch * shape.units, kNan),
        cell(hidden),
        gates(shape.rows() * shape.gates(), kNan),
        cells(outputs),
        records(4, kNan),
        to_sums(gates),
        to_kernel(shape.features * shape.gates(), kNan),
        to_recurrent(shape.units * shape.gates(), kNan),
        to_bias(shape.gates(), kNan),
        to_hidden(hidden),
        to_cell(hidden) {}

  LstmGradients gradients(bool in_place) {
    return {in_place ? gates.data() : to_sums.data(),
            to_kernel.data(),
            to_recurrent.data(),
            to_bias.data(),
            to_hidden.data(),
            to_cell.data()};
  }

  std::vector<float> outputs, hidden, cell, gates, cells, records;
  std::vector<float> to_sums, to_kernel, to_recurrent, to_bias, to_hidden, to_cell;
};

void CompareLstm(const LstmShape& shape, const Options& options, const std::string& what) {
  const int64_t states = shape.batch * shape.units;
  const std::vector<float> x = Normal(shape.rows() * shape.features, 1);
  const std::vector<float> kernel = Normal(shape.features * shape.gates(), 2, 0.5f);
  const std::vector<float> recurrent = Normal(shape.units * shape.gates(), 3, 0.3f);
  const std::vector<float> bias = Normal(shape.gates(), 4, 3.0f), hidden = Normal(states, 5);
  const std::vector<float> cell = Normal(states, 6), slopes = Normal(shape.rows() * shape.units, 7);
  const std::unique_ptr<bool[]> mask(new bool[shape.rows() + 1]);
  for (int64_t i = 0; i < shape.rows(); ++i) mask[i] = i % 3 != 0;
  const QuantizerSpec hidden_spec{8, false}, cell_spec{16, false};
  const LstmArguments arguments = {x.data(),
                                   kernel.data(),
                                   recurrent.data(),
                                   options.has_bias ? bias.data() : nullptr,
                                   hidden.data(),
                                   cell.data(),
                                   options.masked ? mask.get() : nullptr,
                                   options.backwards,
                                   options.time_major,
                                   MakeStateGrid(MakeGrid(options.hidden, hidden_spec)),
                                   MakeStateGrid(MakeGrid(options.cell, cell_spec)),
                                   options.scales};
  const LstmOutputSlopes arriving = {slopes.data(), hidden.data(), cell.data()};

  Everything cpu(shape);
  Workspace forward(LstmForwardWorkspace(shape)), backward(LstmBackwardWorkspace(shape));
  LstmResults results = {cpu.outputs.data(), cpu.hidden.data(), cpu.cell.data(), {}, {},
                         cpu.gates.data(),   cpu.cells.data()};
  LstmForward(shape, arguments, &results, forward.data(), kOneThread);
  cpu.records = {results.hidden_record.min, results.hidden_record.max, results.cell_record.min,
                 results.cell_record.max};
  LstmBackward(shape, arguments, cpu.outputs.data(), {cpu.gates.data(), cpu.cells.data()}, arriving,
               cpu.gradients(/*in_place=*/false), backward.data(), kOneThread);

  Everything gpu(shape);
  HostLauncher launcher;
  const cuda::LstmCase given = {shape,
                                arguments,
                                {&options.hidden.min, &options.hidden.max, hidden_spec},
                                {&options.cell.min, &options.cell.max, cell_spec}};
  std::vector<float> scratch(cuda::LstmForwardScratch(shape), kNan);
  float* records = gpu.records.data();
  cuda::RunLstmForward(given,
                       {gpu.outputs.data(),
                        gpu.hidden.data(),
                        gpu.cell.data(),
                        gpu.gates.data(),
                        gpu.cells.data(),
                        {records, records + 1},
                        {records + 2, records + 3}},
                       scratch.data(), launcher);
  const std::vector<float> gates = gpu.gates;
  scratch.assign(cuda::LstmBackwardScratch(shape), kNan);
  cuda::RunLstmBackward(given, gpu.outputs.data(), {gpu.gates.data(), gpu.cells.data()}, arriving,
                        gpu.gradients(/*in_place=*/true), scratch.data(), launcher);
  gpu.to_sums = gpu.gates;
  gpu.gates = gates;

#define DQAT_COMPARE(name) Expect(SameBits(gpu.name, cpu.name), what + ": " #name)
  DQAT_COMPARE(outputs);
  DQAT_COMPARE(hidden);
  DQAT_COMPARE(cell);
  DQAT_COMPARE(cells);
  DQAT_COMPARE(records);
  DQAT_COMPARE(to_kernel);
  DQAT_COMPARE(to_recurrent);
  DQAT_COMPARE(to_bias);
  DQAT_COMPARE(to_hidden);
  DQAT_COMPARE(to_cell);
  DQAT_COMPARE(to_sums);
  DQAT_COMPARE(gates);
#undef DQAT_COMPARE
}

void CompareProducts() {
  for (const auto& [rows, columns, depth] :
       {std::tuple{1, 1, 1}, {13, 65, 40}, {200, 130, 7}, {64, 64, 16}, {5, 64, 0}, {0, 3, 4}, {3, 0, 4}}) {
    const std::vector<float> a = Normal(rows * depth, 1), b = Normal(columns * depth, 2);
    for (const bool transposed : {false, true}) {  // the same numbers as another matrix
      const ProductOperand left =
          transposed ? ProductOperand{a.data(), 1, rows} : ProductOperand{a.data(), depth, 1};
      const ProductOperand right =
          transposed ? ProductOperand{b.data(), 1, columns} : ProductOperand{b.data(), depth, 1};
      std::vector<float> cpu(rows * columns, kNan), gpu(cpu);
      Workspace packed(PackedSize(columns, depth));
      Pack(columns, depth, right, packed.data(), kOneThread);
      Multiply(rows, columns, depth, left, packed.data(), cpu.data(), columns, kOneThread);
      const cuda::ProductWork work = {{left.data, left.row_stride, left.depth_stride, rows},
                                      {right.data, right.row_stride, right.depth_stride, columns},
                                      depth,
                                      gpu.data()};
      HostLauncher().Run(work.Tasks(), work);
      Expect(SameBits(gpu, cpu), "product " + std::to_string(rows) + " x " + std::to_string(columns) +
                                     (transposed ? ", transposed" : ""));
    }
  }
}

void CompareGru() {
  for (const auto& [batch, units] : {std::pair{1, 1}, {3, 7}, {33, 40}, {0, 5}}) {
    for (const bool masked : {false, true}) {
      const int64_t states = int64_t{batch} * units;
      const std::vector<float> projected = Normal(3 * states, 1, 4.0f), product = Normal(3 * states, 2, 4.0f);
      const std::vector<float> hidden = Normal(states, 3), slope = Normal(states, 4);
      const std::unique_ptr<bool[]> mask(new bool[batch + 1]);
      for (int b = 0; b < batch; ++b) mask[b] = b % 3 != 0;
      const QuantizerSpec spec{8, false};
      std::vector<float> low(kGruPoints), high(kGruPoints);
      GruStep step = {
          batch, units, projected.data(), product.data(), hidden.data(), masked ? mask.get() : nullptr, {}};
      for (int point = 0; point < kGruPoints; ++point) {  // among them one that is not known yet
        low[point] = point == 8 ? kInfinity : -0.3f * (1 + point);
        high[point] = point == 8 ? -kInfinity : 0.4f * (1 + point);
        step.grids.at[point] = MakeStateGrid(MakeGrid({low[point], high[point]}, spec));
      }
      std::vector<float> after(states, kNan), records(2 * kGruPoints, kNan), expected(after), found(records);
      std::vector<float> slopes[2][3];
      for (auto& each : slopes) {
        for (int i = 0; i < 3; ++i) each[i].assign(i < 2 ? 3 * states : states, kNan);
      }
      Range ranges[kGruPoints];
      GruStepForward(step, expected.data(), ranges, kOneThread);
      for (int point = 0; point < kGruPoints; ++point) {
        records[point] = ranges[point].min;
        records[kGruPoints + point] = ranges[point].max;
      }
      GruStepBackward(step, slope.data(), slopes[0][0].data(), slopes[0][1].data(), slopes[0][2].data(),
                      kOneThread);

      HostLauncher launcher;
      const cuda::GruCase given = {step, {low.data(), high.data(), spec}};
      std::vector<float> scratch(cuda::GruForwardScratch(given), kNan);
      RunGruForward(given, after.data(), {found.data(), found.data() + kGruPoints}, scratch.data(), launcher);
      RunGruBackward(given, slope.data(), slopes[1][0].data(), slopes[1][1].data(), slopes[1][2].data(),
                     launcher);
      const std::string what = "GRU of batch " + std::to_string(batch) + (masked ? ", masked" : "");
      Expect(SameBits(after, expected), what + ": state");
      Expect(SameBits(found, records), what + ": records");
      for (int i = 0; i < 3; ++i) Expect(SameBits(slopes[1][i], slopes[0][i]), what + ": gradients");
    }
  }
}

// A range that can't be: no thread can raise, so the outputs are NaN.
void InvalidRange() {
  const LstmShape shape = {2, 3, 4, 5};
  const std::vector<float> x = Normal(24, 1), kernel = Normal(80, 2), recurrent = Normal(100, 3);
  const std::vector<float> states = Normal(10, 4);
  const Range wrong = {1.0f, -1.0f}, right = {-1.0f, 1.0f};
  const LstmArguments arguments = {x.data(),
                                   kernel.data(),
                                   recurrent.data(),
                                   nullptr,
                                   states.data(),
                                   states.data(),
                                   nullptr,
                                   false,
                                   false,
                                   {},
                                   {}};
  Everything gpu(shape);
  std::vector<float> scratch(cuda::LstmForwardScratch(shape));
  float* records = gpu.records.data();
  HostLauncher launcher;
  cuda::RunLstmForward({shape, arguments, {&wrong.min, &wrong.max, {}}, {&right.min, &right.max, {16}}},
                       {gpu.outputs.data(),
                        gpu.hidden.data(),
                        gpu.cell.data(),
                        gpu.gates.data(),
                        gpu.cells.data(),
                        {records, records + 1},
                        {records + 2, records + 3}},
                       scratch.data(), launcher);
  Expect(AllNan(gpu.outputs), "an invalid range gives NaN");
}

void CompareAll() {
  const Range none, wide = {-0.9f, 0.9f}, cell = {-2.0f, 2.0f}, zero = {0.0f, 0.0f};
  const Range power = {-2.0f, 2.0f - 1.0f / 16384.0f};
  const float scales[] = {0.01f,  0.01f, 0.01f, 0.01f,  0.03f,  0.025f,
                          0.025f, 0.02f, 0.02f, 0.015f, 0.014f, 0.028f};
  for (const LstmShape& shape : {LstmShape{1, 1, 1, 1},
                                 {3, 2, 5, 7},
                                 {33, 3, 4, 17},
                                 {7, 4, 70, 66},
                                 {2, 0, 3, 16},
                                 {0, 2, 3, 16},
                                 {2, 3, 0, 16},
                                 {40, 9, 3, 20}}) {
    const std::string name =
        "LSTM of batch " + std::to_string(shape.batch) + ", units " + std::to_string(shape.units);
    CompareLstm(shape, {false, false, false, true, wide, cell}, name);
    CompareLstm(shape, {true, false, true, true, none, none}, name + ", masked, time first");
    CompareLstm(shape, {true, true, false, false, wide, cell}, name + ", masked, backwards, without bias");
    CompareLstm(shape, {false, true, true, true, zero, wide}, name + ", backwards, time first");
    CompareLstm(shape, {true, false, false, true, wide, power, scales}, name + ", masked, in integers");
  }
}

}  // namespace
}  // namespace dqat::core

int main() {
  dqat::core::CompareProducts();
  dqat::core::CompareAll();
  dqat::core::CompareGru();
  dqat::core::InvalidRange();
  return dqat::core::Report();
}
