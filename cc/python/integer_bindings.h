#ifndef DQAT_PYTHON_INTEGER_BINDINGS_H_
#define DQAT_PYTHON_INTEGER_BINDINGS_H_

#include <pybind11/pybind11.h>

namespace dqat {

// Adds quantize, quantize_multiplier, requantize and fully_connected; dqat/integer.py documents them.
void BindIntegerKernels(pybind11::module_& module);

// Adds simple_rnn and gru.
void BindIntegerCells(pybind11::module_& module);

}  // namespace dqat

#endif  // DQAT_PYTHON_INTEGER_BINDINGS_H_
