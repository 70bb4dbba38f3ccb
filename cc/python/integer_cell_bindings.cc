// The integer recurrent cells on NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/integer_cells.h"
#include "python/integer_bindings.h"

namespace py = pybind11;

namespace dqat {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
// Scale and zero point by quantization point.
using Grids = std::map<std::string, std::pair<float, int32_t>>;

core::IntegerGrid GridOf(const Grids& grids, const std::string& point) {
  const auto found = grids.find(point);
  if (found == grids.end()) throw py::value_error("grids must have the point '" + point + "'");
  const auto [scale, zero_point] = found->second;
  if (!std::isfinite(scale) || scale <= 0.0f) {
    throw py::value_error("the scale of '" + point + "' must be finite and positive, got " +
                          std::to_string(scale));
  }
  return {scale, zero_point};
}

template <typename T>
void RequireShape(const Array<T>& array, const char* name, const std::vector<int64_t>& shape) {
  const bool same = array.ndim() == static_cast<py::ssize_t>(shape.size()) &&
                    std::equal(shape.begin(), shape.end(), array.shape());
  if (same) return;
  std::string wanted;
  for (const int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  throw py::value_error(std::string(name) + " must have shape [" + wanted + "]");
}

core::IntegerMatrix MatrixOf(const Array<int8_t>& weight, const std::optional<Array<int32_t>>& bias,
                             float scale, const char* name, int64_t outputs, int64_t inputs) {
  RequireShape(weight, name, {outputs, inputs});
  if (bias) RequireShape(*bias, "a bias", {outputs});
  if (!std::isfinite(scale) || scale <= 0.0f) {
    throw py::value_error(std::string("the scale of ") + name + " must be finite and positive");
  }
  return {weight.data(), bias ? bias->data() : nullptr, scale};
}

core::IntegerActivation ActivationOf(const std::string& name) {
  if (name == "tanh") return core::IntegerActivation::kTanh;
  if (name == "sigmoid") return core::IntegerActivation::kSigmoid;
  if (name == "relu") return core::IntegerActivation::kRelu;
  if (name == "linear") return core::IntegerActivation::kLinear;
  throw py::value_error("activation must be tanh, sigmoid, relu or linear, got " + name);
}

bool HasTable(core::IntegerActivation activation) {
  return activation == core::IntegerActivation::kTanh || activation == core::IntegerActivation::kSigmoid;
}

core::IntegerCellShape ShapeOf(const Array<int8_t>& input, const Array<int8_t>& hidden) {
  if (input.ndim() != 3) throw py::value_error("input must be int8 [batch, time, inputs]");
  if (hidden.ndim() != 2 || hidden.shape(0) != input.shape(0)) {
    throw py::value_error("hidden must be int8 [batch, units]");
  }
  return {input.shape(0), input.shape(1), input.shape(2), hidden.shape(1)};
}

struct Outcome {
  Outcome(const core::IntegerCellShape& shape, const Array<int8_t>& before)
      : output({shape.batch, shape.time, shape.units}), hidden({shape.batch, shape.units}) {
    std::copy_n(before.data(), before.size(), hidden.mutable_data());
  }
  py::tuple AsTuple() const { return py::make_tuple(output, hidden); }

  Array<int8_t> output, hidden;
};

py::tuple SimpleRnn(const Array<int8_t>& input, const Array<int8_t>& kernel, const Array<int8_t>& recurrent,
                    const std::optional<Array<int32_t>>& bias, const Array<int8_t>& hidden,
                    float kernel_scale, float recurrent_scale, const Grids& grids,
                    const std::string& activation) {
  const core::IntegerCellShape shape = ShapeOf(input, hidden);
  core::IntegerSimpleRnnParameters p;
  p.activation = ActivationOf(activation);
  p.input = GridOf(grids, "input");
  p.input_product = GridOf(grids, "input_product");
  p.recurrent_product = GridOf(grids, "recurrent_product");
  p.hidden = GridOf(grids, "hidden");
  if (HasTable(p.activation)) p.hidden_sum = GridOf(grids, "hidden_sum");
  Outcome found(shape, hidden);
  core::IntegerSimpleRnn(
      shape, p, input.data(), MatrixOf(kernel, bias, kernel_scale, "kernel", shape.units, shape.inputs),
      MatrixOf(recurrent, std::nullopt, recurrent_scale, "recurrent_kernel", shape.units, shape.units),
      found.hidden.mutable_data(), found.output.mutable_data());
  return found.AsTuple();
}

py::tuple Gru(const Array<int8_t>& input, const Array<int8_t>& kernel, const Array<int8_t>& recurrent,
              const std::optional<Array<int8_t>>& candidate, const std::optional<Array<int32_t>>& bias,
              const std::optional<Array<int32_t>>& recurrent_bias, const Array<int8_t>& hidden,
              float kernel_scale, float recurrent_scale, float candidate_scale, const Grids& grids,
              const std::string& activation) {
  const core::IntegerCellShape shape = ShapeOf(input, hidden);
  core::IntegerGruParameters p;
  p.activation = ActivationOf(activation);
  p.reset_after = !candidate.has_value();
  const std::pair<const char*, core::IntegerGrid*> points[] = {{"input", &p.input},
                                                               {"input_product", &p.input_product},
                                                               {"recurrent_product", &p.recurrent_product},
                                                               {"gates_sum", &p.gates_sum},
                                                               {"gates", &p.gates},
                                                               {"candidate", &p.candidate},
                                                               {"kept", &p.kept},
                                                               {"openness", &p.openness},
                                                               {"new", &p.new_part},
                                                               {"hidden", &p.hidden}};
  for (const auto& [name, grid] : points) *grid = GridOf(grids, name);
  if (HasTable(p.activation)) p.candidate_sum = GridOf(grids, "candidate_sum");
  core::IntegerMatrix candidate_matrix;
  if (p.reset_after) {
    p.reset_product = GridOf(grids, "reset_product");
  } else {
    p.reset_hidden = GridOf(grids, "reset_hidden");
    p.candidate_product = GridOf(grids, "candidate_product");
    candidate_matrix = MatrixOf(*candidate, std::nullopt, candidate_scale, "recurrent_kernel_candidate",
                                shape.units, shape.units);
  }
  Outcome found(shape, hidden);
  core::IntegerGru(shape, p, input.data(),
                   MatrixOf(kernel, bias, kernel_scale, "kernel", 3 * shape.units, shape.inputs),
                   MatrixOf(recurrent, recurrent_bias, recurrent_scale, "recurrent_kernel",
                            (p.reset_after ? 3 : 2) * shape.units, shape.units),
                   candidate_matrix, found.hidden.mutable_data(), found.output.mutable_data());
  return found.AsTuple();
}

}  // namespace

void BindIntegerCells(py::module_& module) {
  module.def("simple_rnn", &SimpleRnn, py::arg("input"), py::arg("kernel"), py::arg("recurrent_kernel"),
             py::arg("bias"), py::arg("hidden"), py::kw_only(), py::arg("kernel_scale"),
             py::arg("recurrent_scale"), py::arg("grids"), py::arg("activation"));
  module.def("gru", &Gru, py::arg("input"), py::arg("kernel"), py::arg("recurrent_kernel"),
             py::arg("recurrent_kernel_candidate"), py::arg("bias"), py::arg("recurrent_bias"),
             py::arg("hidden"), py::kw_only(), py::arg("kernel_scale"), py::arg("recurrent_scale"),
             py::arg("candidate_scale"), py::arg("grids"), py::arg("activation"));
}

}  // namespace dqat
