// The integer reference kernels on NumPy arrays.
#include "python/integer_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/integer_kernels.h"
#include "core/integer_lstm.h"

namespace py = pybind11;

namespace dqat {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void RequireScale(float scale) {
  if (!std::isfinite(scale) || scale <= 0.0f) {
    throw py::value_error("scale must be finite and positive, got " + std::to_string(scale));
  }
}

py::tuple QuantizeMultiplier(double factor) {
  const core::QuantizedMultiplier multiplier = core::QuantizeMultiplier(factor);
  return py::make_tuple(multiplier.value, multiplier.shift);
}

Array<int32_t> Requantize(const Array<int32_t>& x, int32_t value, int shift) {
  if (shift < -31 || shift > 30) {
    throw py::value_error("shift must be -31 to 30, got " + std::to_string(shift));
  }
  Array<int32_t> result(x.request().shape);
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    result.mutable_data()[i] = core::MultiplyByQuantizedMultiplier(x.data()[i], {value, shift});
  }
  return result;
}

Array<int8_t> FullyConnected(const Array<int8_t>& input, const Array<int8_t>& weight,
                             const std::optional<Array<int32_t>>& bias, float input_scale,
                             int32_t input_zero_point, const std::vector<float>& weight_scale,
                             float output_scale, int32_t output_zero_point, int32_t lowest, int32_t highest,
                             bool ties_upwards) {
  if (input.ndim() != 2 || weight.ndim() != 2 || input.shape(1) != weight.shape(1)) {
    throw py::value_error("input must be int8 [batch, inputs] and weight int8 [outputs, inputs]");
  }
  const int64_t outputs = weight.shape(0);
  if (bias && (bias->ndim() != 1 || bias->shape(0) != outputs)) {
    throw py::value_error("bias must be int32 [outputs]");
  }
  if (weight_scale.size() != 1 && static_cast<int64_t>(weight_scale.size()) != outputs) {
    throw py::value_error("weight_scale must have 1 or [outputs] values");
  }
  RequireScale(input_scale);
  RequireScale(output_scale);
  std::vector<core::QuantizedMultiplier> multipliers;
  for (int64_t o = 0; o < outputs; ++o) {
    const float scale = weight_scale[weight_scale.size() == 1 ? 0 : o];
    RequireScale(scale);
    // TFLite multiplies the two scales in float32.
    multipliers.push_back(core::QuantizeMultiplier(static_cast<double>(input_scale * scale) / output_scale));
  }
  Array<int8_t> output({input.shape(0), weight.shape(0)});
  core::FullyConnected({input.shape(0), input.shape(1), outputs},
                       {input_zero_point, output_zero_point, lowest, highest, ties_upwards},
                       multipliers.data(), input.data(), weight.data(), bias ? bias->data() : nullptr,
                       output.mutable_data());
  return output;
}

Array<int16_t> Logistic(const Array<int16_t>& x) {
  Array<int16_t> result(x.request().shape);
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    result.mutable_data()[i] = core::FixedPointLogistic(x.data()[i]);
  }
  return result;
}

Array<int16_t> Tanh(const Array<int16_t>& x, int integer_bits) {
  if (integer_bits < 0 || integer_bits > 6) {
    throw py::value_error("integer_bits must be 0 to 6, got " + std::to_string(integer_bits));
  }
  Array<int16_t> result(x.request().shape);
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    result.mutable_data()[i] = core::FixedPointTanh(x.data()[i], integer_bits);
  }
  return result;
}

void RequireShape(const py::array& array, const char* name, const std::vector<int64_t>& shape) {
  const bool same = array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
                    std::equal(shape.begin(), shape.end(), array.shape());
  if (same) return;
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  throw py::value_error(std::string(name) + " must have shape [" + wanted + "]");
}

py::tuple Lstm(const Array<int8_t>& input, const Array<int8_t>& input_weights,
               const Array<int8_t>& recurrent_weights, const Array<int32_t>& bias,
               const Array<int8_t>& hidden, const Array<int16_t>& cell, float input_scale,
               int32_t input_zero_point, const std::vector<float>& input_weight_scales,
               const std::vector<float>& recurrent_weight_scales, float hidden_scale,
               int32_t hidden_zero_point, float cell_scale, float cell_clip,
               const std::optional<Array<int16_t>>& peepholes, const std::vector<float>& peephole_scales) {
  if (input.ndim() != 3) throw py::value_error("input must be int8 [batch, time, inputs]");
  if (recurrent_weights.ndim() != 3)
    throw py::value_error("recurrent_weights must be int8 [4, units, units]");
  const int64_t batch = input.shape(0), time = input.shape(1), inputs = input.shape(2);
  const int64_t units = recurrent_weights.shape(1);
  RequireShape(input_weights, "input_weights", {4, units, inputs});
  RequireShape(recurrent_weights, "recurrent_weights", {4, units, units});
  RequireShape(bias, "bias", {4, units});
  RequireShape(hidden, "hidden", {batch, units});
  RequireShape(cell, "cell", {batch, units});
  if (input_weight_scales.size() != 4 || recurrent_weight_scales.size() != 4) {
    throw py::value_error("input_weight_scales and recurrent_weight_scales must have 4 values");
  }
  for (const float scale : {input_scale, hidden_scale, cell_scale}) RequireScale(scale);
  core::IntegerLstmParameters parameters;
  parameters.input_zero_point = input_zero_point;
  parameters.hidden_zero_point = hidden_zero_point;
  for (int gate = 0; gate < 4; ++gate) {
    RequireScale(input_weight_scales[gate]);
    RequireScale(recurrent_weight_scales[gate]);
    // TFLite multiplies the two scales in float32; the division by 2^-12 is exact.
    parameters.input_multipliers[gate] =
        core::QuantizeMultiplier(static_cast<double>(input_weight_scales[gate] * input_scale) * 4096.0);
    parameters.recurrent_multipliers[gate] =
        core::QuantizeMultiplier(static_cast<double>(recurrent_weight_scales[gate] * hidden_scale) * 4096.0);
  }
  // TFLite holds this factor in float32.
  const float hidden_factor = static_cast<float>(std::ldexp(1.0, -30) / hidden_scale);
  parameters.hidden_multiplier = core::QuantizeMultiplier(hidden_factor);
  int exponent = 0;
  if (std::frexp(cell_scale, &exponent) != 0.5f || exponent - 1 < -15 || exponent - 1 > -9) {
    throw py::value_error("cell_scale must be a power of two from 2^-15 to 2^-9, got " +
                          std::to_string(cell_scale));
  }
  parameters.cell_exponent = exponent - 1;
  if (!(cell_clip >= 0.0f)) throw py::value_error("cell_clip must not be negative (0 stands for none)");
  parameters.cell_clip = static_cast<int16_t>(std::min(cell_clip / cell_scale, 32767.0f));
  if (peepholes) {
    RequireShape(*peepholes, "peepholes", {3, units});
    if (peephole_scales.size() != 3) throw py::value_error("peephole_scales must have 3 values");
    parameters.peepholes = peepholes->data();
    for (int gate = 0; gate < 3; ++gate) {
      RequireScale(peephole_scales[gate]);
      const double factor = static_cast<double>(peephole_scales[gate]) * cell_scale * 4096.0;
      parameters.peephole_multipliers[gate] = core::QuantizeMultiplier(factor);
    }
  }

  Array<int8_t> output({batch, time, units});
  Array<int8_t> last_hidden({batch, units});
  Array<int16_t> last_cell({batch, units});
  std::copy_n(hidden.data(), hidden.size(), last_hidden.mutable_data());
  std::copy_n(cell.data(), cell.size(), last_cell.mutable_data());
  core::IntegerLstm({batch, time, inputs, units}, parameters, input.data(), input_weights.data(),
                    recurrent_weights.data(), bias.data(), last_hidden.mutable_data(),
                    last_cell.mutable_data(), output.mutable_data());
  return py::make_tuple(output, last_hidden, last_cell);
}

}  // namespace

void BindIntegerKernels(py::module_& module) {
  module.def("quantize_multiplier", &QuantizeMultiplier, py::arg("factor"));
  module.def("requantize", &Requantize, py::arg("x"), py::arg("multiplier"), py::arg("shift"));
  module.def("fully_connected", &FullyConnected, py::arg("input"), py::arg("weight"), py::arg("bias"),
             py::kw_only(), py::arg("input_scale"), py::arg("input_zero_point"), py::arg("weight_scale"),
             py::arg("output_scale"), py::arg("output_zero_point"), py::arg("lowest") = -128,
             py::arg("highest") = 127, py::arg("ties_upwards") = false);
  module.def("logistic", &Logistic, py::arg("x"));
  module.def("tanh", &Tanh, py::arg("x"), py::kw_only(), py::arg("integer_bits"));
  module.def("lstm", &Lstm, py::arg("input"), py::arg("input_weights"), py::arg("recurrent_weights"),
             py::arg("bias"), py::arg("hidden"), py::arg("cell"), py::kw_only(), py::arg("input_scale"),
             py::arg("input_zero_point"), py::arg("input_weight_scales"), py::arg("recurrent_weight_scales"),
             py::arg("hidden_scale"), py::arg("hidden_zero_point"), py::arg("cell_scale"),
             py::arg("cell_clip"), py::arg("peepholes"), py::arg("peephole_scales"));
}

}  // namespace dqat
