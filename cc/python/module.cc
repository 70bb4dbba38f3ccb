// The Python module. It is the same shared object as the TensorFlow op library: loading it with
// tf.load_op_library registers the operations, importing it gives what is below.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "core/fake_quant.h"
#include "core/histogram.h"
#include "core/instruction_set.h"
#include "python/integer_bindings.h"

namespace py = pybind11;

namespace dqat {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

core::QuantizerSpec Spec(int num_bits, bool narrow_range, bool symmetric, bool power_of_two) {
  if (num_bits < 2 || num_bits > 16) {
    throw py::value_error("num_bits must be 2 to 16, got " + std::to_string(num_bits));
  }
  if (narrow_range && power_of_two) {
    throw py::value_error("power_of_two uses all levels: narrow_range must be False");
  }
  return {num_bits, narrow_range, symmetric, power_of_two};
}

void RequireSameShape(const Floats& min, const Floats& max) {
  if (min.ndim() != max.ndim() || !std::equal(min.shape(), min.shape() + min.ndim(), max.shape())) {
    throw py::value_error("min and max must have the same shape");
  }
}

py::tuple FitRange(const Floats& min, const Floats& max, int num_bits, bool narrow_range, bool symmetric,
                   bool power_of_two) {
  const core::QuantizerSpec spec = Spec(num_bits, narrow_range, symmetric, power_of_two);
  RequireSameShape(min, max);
  Floats fitted_min(min.request().shape), fitted_max(min.request().shape);
  for (py::ssize_t i = 0; i < min.size(); ++i) {
    const core::Range range = core::FitRange({min.data()[i], max.data()[i]}, spec);
    fitted_min.mutable_data()[i] = range.min;
    fitted_max.mutable_data()[i] = range.max;
  }
  return py::make_tuple(fitted_min, fitted_max);
}

py::dict QuantizationParameters(const Floats& min, const Floats& max, int num_bits, bool narrow_range) {
  const core::QuantizerSpec spec = Spec(num_bits, narrow_range, false, false);
  RequireSameShape(min, max);
  const auto shape = min.request().shape;
  Floats scale(shape), nudged_min(shape), nudged_max(shape);
  py::array_t<int32_t> zero_point(shape);
  for (py::ssize_t i = 0; i < min.size(); ++i) {
    const core::Range range{min.data()[i], max.data()[i]};
    if (range.empty() || !core::IsValid(range)) {
      throw py::value_error("range must be finite with min < max (or 0 and 0), got min " +
                            std::to_string(range.min) + " and max " + std::to_string(range.max));
    }
    const core::Grid grid = core::MakeGrid(range, spec);
    scale.mutable_data()[i] = grid.scale;
    zero_point.mutable_data()[i] = grid.zero_point;
    nudged_min.mutable_data()[i] = grid.nudged_min;
    nudged_max.mutable_data()[i] = grid.nudged_max;
  }
  py::dict result;
  result["scale"] = scale;
  result["zero_point"] = zero_point;
  result["nudged_min"] = nudged_min;
  result["nudged_max"] = nudged_max;
  return result;
}

py::dict BuildInfo() {
  py::dict info;
  info["dqat"] = DQAT_VERSION;
  info["tensorflow"] = DQAT_TENSORFLOW_VERSION;
  info["compiler"] = __VERSION__;
  info["instruction_sets"] = core::AvailableInstructionSets();
  info["instruction_set"] = core::InstructionSet();
#ifdef DQAT_CUDA
  info["cuda"] = true;
  info["cuda_architectures"] = py::str(DQAT_CUDA_ARCHITECTURES).attr("split")(",");
#else
  info["cuda"] = false;
  info["cuda_architectures"] = py::list();
#endif
  return info;
}

PYBIND11_MODULE(_dqat, module) {
  module.doc() = "dqat's kernels: TensorFlow op library and arithmetic on NumPy arrays.";
  module.attr("HISTOGRAM_BINS") = static_cast<int>(core::HistogramGrid::kBins);
  module.def("build_info", &BuildInfo);
  module.def("set_instruction_set", [](const std::string& name) {
    if (!core::SetInstructionSet(name.c_str())) {
      throw py::value_error("instruction set '" + name + "' is not available");
    }
  });
  module.def("fit_range", &FitRange, py::arg("min"), py::arg("max"), py::kw_only(), py::arg("num_bits") = 8,
             py::arg("narrow_range") = false, py::arg("symmetric") = false, py::arg("power_of_two") = false,
             "The range to quantize with, from a recorded one; see Dqat>FitRange.");
  module.def("quantization_parameters", &QuantizationParameters, py::arg("min"), py::arg("max"),
             py::kw_only(), py::arg("num_bits") = 8, py::arg("narrow_range") = false,
             "scale, zero_point (of the signed integer), nudged_min and nudged_max of a range.");
  BindIntegerKernels(module);
  BindIntegerCells(module);
}

}  // namespace
}  // namespace dqat
