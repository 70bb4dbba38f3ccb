// The integer reference kernels on NumPy arrays.
#include "python/integer_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/integer_kernels.h"

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

Array<int32_t> Quantize(const py::array_t<float, py::array::c_style | py::array::forcecast>& x, float scale,
                        int32_t zero_point, int num_bits) {
  RequireScale(scale);
  if (num_bits < 2 || num_bits > 16) {
    throw py::value_error("num_bits must be 2 to 16, got " + std::to_string(num_bits));
  }
  const int32_t half = 1 << (num_bits - 1);
  Array<int32_t> codes(x.request().shape);
  for (py::ssize_t i = 0; i < x.size(); ++i) {
    codes.mutable_data()[i] = core::QuantizeValue(x.data()[i], scale, zero_point, -half, half - 1);
  }
  return codes;
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
                             float output_scale, int32_t output_zero_point, int32_t lowest, int32_t highest) {
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
                       {input_zero_point, output_zero_point, lowest, highest}, multipliers.data(),
                       input.data(), weight.data(), bias ? bias->data() : nullptr, output.mutable_data());
  return output;
}

}  // namespace

void BindIntegerKernels(py::module_& module) {
  module.def("quantize", &Quantize, py::arg("x"), py::kw_only(), py::arg("scale"), py::arg("zero_point"),
             py::arg("num_bits") = 8);
  module.def("quantize_multiplier", &QuantizeMultiplier, py::arg("factor"));
  module.def("requantize", &Requantize, py::arg("x"), py::arg("multiplier"), py::arg("shift"));
  module.def("fully_connected", &FullyConnected, py::arg("input"), py::arg("weight"), py::arg("bias"),
             py::kw_only(), py::arg("input_scale"), py::arg("input_zero_point"), py::arg("weight_scale"),
             py::arg("output_scale"), py::arg("output_zero_point"), py::arg("lowest") = -128,
             py::arg("highest") = 127);
}

}  // namespace dqat
