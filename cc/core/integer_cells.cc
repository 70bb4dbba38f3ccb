#include "core/integer_cells.h"

#include <algorithm>
#include <optional>
#include <vector>

namespace dqat::core {
namespace {

// FULLY_CONNECTED with one scale for all weights.
class Product {
 public:
  Product(const IntegerMatrix& matrix, int64_t inputs, int64_t outputs, const IntegerGrid& input,
          const IntegerGrid& output)
      : matrix_(matrix),
        inputs_(inputs),
        outputs_(outputs),
        // TFLite multiplies the two scales in float32.
        multipliers_(outputs,
                     QuantizeMultiplier(static_cast<double>(input.scale * matrix.scale) / output.scale)) {
    parameters_.input_zero_point = input.zero_point;
    parameters_.output_zero_point = output.zero_point;
    parameters_.ties_upwards = true;
  }

  void operator()(int64_t rows, const int8_t* input, int8_t* output) const {
    FullyConnected({rows, inputs_, outputs_}, parameters_, multipliers_.data(), input, matrix_.weight,
                   matrix_.bias, output);
  }

 private:
  IntegerMatrix matrix_;
  int64_t inputs_, outputs_;
  std::vector<QuantizedMultiplier> multipliers_;
  FullyConnectedParameters parameters_;
};

// A sum and the activation behind it.
class ActivatedSum {
 public:
  ActivatedSum(IntegerActivation activation, const IntegerGrid& a, const IntegerGrid& b,
               const IntegerGrid& sum, const IntegerGrid& output)
      : sum_(a, b, IsTable(activation) ? sum : output),
        lowest_(activation == IntegerActivation::kRelu ? output.zero_point : -128) {
    if (IsTable(activation)) {
      table_.emplace(activation == IntegerActivation::kTanh ? HyperbolicTangent : Logistic, sum, output);
    }
  }

  int8_t operator()(int8_t a, int8_t b) const {
    const int8_t sum = sum_(a, b, lowest_);
    return table_ ? (*table_)(sum) : sum;
  }

 private:
  static bool IsTable(IntegerActivation activation) {
    return activation == IntegerActivation::kTanh || activation == IntegerActivation::kSigmoid;
  }

  IntegerSum sum_;
  int32_t lowest_;
  std::optional<IntegerTable> table_;
};

}  // namespace

void IntegerSimpleRnn(const IntegerCellShape& shape, const IntegerSimpleRnnParameters& parameters,
                      const int8_t* input, const IntegerMatrix& kernel, const IntegerMatrix& recurrent,
                      int8_t* hidden, int8_t* output) {
  const int64_t units = shape.units;
  const IntegerSimpleRnnParameters& p = parameters;
  const Product input_product(kernel, shape.inputs, units, p.input, p.input_product);
  const Product recurrent_product(recurrent, units, units, p.hidden, p.recurrent_product);
  const ActivatedSum next(p.activation, p.input_product, p.recurrent_product, p.hidden_sum, p.hidden);
  std::vector<int8_t> from_input(units), from_hidden(units);
  for (int64_t b = 0; b < shape.batch; ++b) {
    int8_t* h = hidden + b * units;
    for (int64_t t = 0; t < shape.time; ++t) {
      input_product(1, input + (b * shape.time + t) * shape.inputs, from_input.data());
      recurrent_product(1, h, from_hidden.data());
      for (int64_t unit = 0; unit < units; ++unit) h[unit] = next(from_input[unit], from_hidden[unit]);
      std::copy_n(h, units, output + (b * shape.time + t) * units);
    }
  }
}

void IntegerGru(const IntegerCellShape& shape, const IntegerGruParameters& parameters, const int8_t* input,
                const IntegerMatrix& kernel, const IntegerMatrix& recurrent, const IntegerMatrix& candidate,
                int8_t* hidden, int8_t* output) {
  const int64_t units = shape.units;
  const IntegerGruParameters& p = parameters;
  const IntegerGrid one_grid = {1.0f / 255.0f, -128};
  const int8_t one = 127;
  const Product input_product(kernel, shape.inputs, 3 * units, p.input, p.input_product);
  const Product recurrent_product(recurrent, units, (p.reset_after ? 3 : 2) * units, p.hidden,
                                  p.recurrent_product);
  const Product candidate_product(candidate, units, units, p.reset_hidden, p.candidate_product);
  const IntegerGrid& from_reset = p.reset_after ? p.reset_product : p.candidate_product;
  const ActivatedSum gate(IntegerActivation::kSigmoid, p.input_product, p.recurrent_product, p.gates_sum,
                          p.gates);
  const IntegerProduct reset_product(p.gates, p.recurrent_product, p.reset_product);
  const IntegerProduct reset_hidden(p.gates, p.hidden, p.reset_hidden);
  const ActivatedSum proposed(p.activation, p.input_product, from_reset, p.candidate_sum, p.candidate);
  const IntegerProduct keep(p.gates, p.hidden, p.kept), renew(p.openness, p.candidate, p.new_part);
  const IntegerSum open(one_grid, p.gates, p.openness, /*subtract=*/true);
  const IntegerSum next(p.kept, p.new_part, p.hidden);

  std::vector<int8_t> x(3 * units), r(3 * units), gates(2 * units), reset(units), part(units);
  for (int64_t b = 0; b < shape.batch; ++b) {
    int8_t* h = hidden + b * units;
    for (int64_t t = 0; t < shape.time; ++t) {
      input_product(1, input + (b * shape.time + t) * shape.inputs, x.data());
      recurrent_product(1, h, r.data());
      for (int64_t i = 0; i < 2 * units; ++i) gates[i] = gate(x[i], r[i]);
      for (int64_t unit = 0; unit < units; ++unit) {
        const int8_t open_to_it = gates[units + unit];
        reset[unit] = p.reset_after ? reset_product(open_to_it, r[2 * units + unit])
                                    : reset_hidden(open_to_it, h[unit]);
      }
      if (p.reset_after) {
        part = reset;
      } else {
        candidate_product(1, reset.data(), part.data());
      }
      for (int64_t unit = 0; unit < units; ++unit) {
        const int8_t update = gates[unit];
        const int8_t fresh = renew(open(one, update), proposed(x[2 * units + unit], part[unit]));
        h[unit] = next(keep(update, h[unit]), fresh);
      }
      std::copy_n(h, units, output + (b * shape.time + t) * units);
    }
  }
}

}  // namespace dqat::core
