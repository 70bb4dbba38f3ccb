// What Dqat>GruStep and its gradient are given, read and checked: for the kernels of all devices.
#ifndef DQAT_KERNELS_GRU_ARGUMENTS_H_
#define DQAT_KERNELS_GRU_ARGUMENTS_H_

#include "core/gru_step.h"
#include "kernels/arguments.h"

namespace dqat {

// Inputs `first` (projected) to `first` + 5 (max), but for the ranges' values.
inline tensorflow::Status ReadGruStep(tensorflow::OpKernelContext* context, int first, core::GruStep* step) {
  using tensorflow::Tensor;
  const Tensor &projected = context->input(first), &product = context->input(first + 1);
  const Tensor &hidden = context->input(first + 2), &mask = context->input(first + 3);
  if (hidden.dims() != 2 || hidden.dim_size(1) < 1) {
    return tensorflow::errors::InvalidArgument(
        "hidden must be [batch, units] with at least one unit, got shape ", hidden.shape().DebugString());
  }
  const int64_t batch = hidden.dim_size(0), units = hidden.dim_size(1);
  if (projected.dims() != 2 || projected.dim_size(0) != batch || projected.dim_size(1) % 3 != 0 ||
      projected.dim_size(1) / 3 != units) {
    return tensorflow::errors::InvalidArgument("projected must be [batch, 3 * units], got shape ",
                                               projected.shape().DebugString(), " beside hidden with shape ",
                                               hidden.shape().DebugString());
  }
  TF_RETURN_IF_ERROR(CheckSameShape("projected and product", projected, product));
  const bool masked = mask.shape() != tensorflow::TensorShape({0});
  if (masked && mask.shape() != tensorflow::TensorShape({batch})) {
    return tensorflow::errors::InvalidArgument("mask must have shape [", batch, "], got ",
                                               mask.shape().DebugString());
  }
  TF_RETURN_IF_ERROR(CheckRangeShape(context->input(first + 4), context->input(first + 5),
                                     tensorflow::TensorShape({core::kGruPoints})));
  *step = {batch,
           units,
           projected.flat<float>().data(),
           product.flat<float>().data(),
           hidden.flat<float>().data(),
           masked ? mask.flat<bool>().data() : nullptr,
           {}};
  return tensorflow::OkStatus();
}

}  // namespace dqat

#endif  // DQAT_KERNELS_GRU_ARGUMENTS_H_
