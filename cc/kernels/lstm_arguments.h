// What Dqat>QuantizedLstm and its gradient are given, read and checked: for the kernels of all devices.
#ifndef DQAT_KERNELS_LSTM_ARGUMENTS_H_
#define DQAT_KERNELS_LSTM_ARGUMENTS_H_

#include <string>

#include "core/lstm.h"
#include "kernels/arguments.h"

namespace dqat {

inline constexpr double kMostElements = 1e15;  // beyond any memory, and far from where int64 ends

// Attributes of both directions, and their common inputs. Results and gradients are checked against them.
class LstmInputs {
 public:
  explicit LstmInputs(tensorflow::OpKernelConstruction* context) {
    const auto read = [&](const std::string& name, core::QuantizerSpec* spec) -> tensorflow::Status {
      TF_RETURN_IF_ERROR(context->GetAttr(name + "_bits", &spec->num_bits));
      TF_RETURN_IF_ERROR(context->GetAttr(name + "_narrow_range", &spec->narrow_range));
      if (spec->num_bits > 16)
        return tensorflow::errors::InvalidArgument(name, "_bits must be 2 to 16, got ", spec->num_bits);
      return tensorflow::OkStatus();
    };
    OP_REQUIRES_OK(context, read("hidden", &hidden_));
    OP_REQUIRES_OK(context, read("cell", &cell_));
    OP_REQUIRES_OK(context, context->GetAttr("go_backwards", &go_backwards_));
    OP_REQUIRES_OK(context, context->GetAttr("time_major", &time_major_));
  }

  // Reads and checks inputs `first` (x) to `first` + 11 (scales), but for the ranges' values: see ReadGrids.
  tensorflow::Status Read(tensorflow::OpKernelContext* context, int first, core::LstmShape* shape,
                          core::LstmArguments* arguments) const {
    const tensorflow::Tensor &x = context->input(first), &kernel = context->input(first + 1);
    const tensorflow::Tensor &recurrent = context->input(first + 2), &bias = context->input(first + 3);
    const tensorflow::Tensor &hidden = context->input(first + 4), &cell = context->input(first + 5);
    const tensorflow::Tensor& mask = context->input(first + 6);
    if (x.dims() != 3) {
      return tensorflow::errors::InvalidArgument(
          "x must be [batch, time, features], or [time, batch, features], got shape ",
          x.shape().DebugString());
    }
    *shape = {x.dim_size(time_major_ ? 1 : 0), x.dim_size(time_major_ ? 0 : 1), x.dim_size(2),
              recurrent.dims() == 2 ? recurrent.dim_size(0) : 0};
    if (shape->units < 1) {
      return tensorflow::errors::InvalidArgument(
          "recurrent_kernel must be [units, 4 * units] with at least one unit, got shape ",
          recurrent.shape().DebugString());
    }
    // An x without features takes no memory, whatever its length.
    const double elements = static_cast<double>(shape->batch) * shape->time * shape->gates();
    if (elements > kMostElements) {
      return tensorflow::errors::InvalidArgument("x with shape ", x.shape().DebugString(),
                                                 " is too large for ", shape->units, " units");
    }
    const tensorflow::TensorShape state({shape->batch, shape->units});
    TF_RETURN_IF_ERROR(
        CheckShape("kernel", kernel, tensorflow::TensorShape({shape->features, shape->gates()})));
    TF_RETURN_IF_ERROR(
        CheckShape("recurrent_kernel", recurrent, tensorflow::TensorShape({shape->units, shape->gates()})));
    if (bias.shape() != tensorflow::TensorShape({0})) {
      TF_RETURN_IF_ERROR(CheckShape("bias", bias, tensorflow::TensorShape({shape->gates()})));
    }
    TF_RETURN_IF_ERROR(CheckShape("initial_hidden", hidden, state));
    TF_RETURN_IF_ERROR(CheckShape("initial_cell", cell, state));
    const bool masked = mask.shape() != tensorflow::TensorShape({0, 0});
    if (masked) TF_RETURN_IF_ERROR(CheckShape("mask", mask, Sequence(*shape)));
    *arguments = {Floats(x),
                  Floats(kernel),
                  Floats(recurrent),
                  bias.NumElements() == 0 ? nullptr : Floats(bias),
                  Floats(hidden),
                  Floats(cell),
                  masked ? mask.flat<bool>().data() : nullptr,
                  go_backwards_,
                  time_major_,
                  {},
                  {}};
    for (int i = 7; i < 11; ++i) TF_RETURN_IF_ERROR(CheckScalar(context->input(first + i), "range"));
    const tensorflow::Tensor& scales = context->input(first + 11);
    if (scales.shape() == tensorflow::TensorShape({0, 0})) return tensorflow::OkStatus();
    arguments->scales = Floats(scales);
    return CheckShape("operand_scales", scales, tensorflow::TensorShape({3, 4}));
  }

  // Of ranges in host memory.
  tensorflow::Status ReadGrids(tensorflow::OpKernelContext* context, int first,
                               core::LstmArguments* arguments) const {
    TF_RETURN_IF_ERROR(ReadGrid(context, first + 7, "hidden", hidden_, &arguments->hidden_grid));
    return ReadGrid(context, first + 9, "cell", cell_, &arguments->cell_grid);
  }

  // Checks what the gradient is given beside: what arrives at the results, inputs 0 to 2, and inputs 15
  // to 17.
  tensorflow::Status CheckGradient(tensorflow::OpKernelContext* context, const core::LstmShape& shape) const {
    const tensorflow::TensorShape state({shape.batch, shape.units}), sequence = Sequence(shape, shape.units);
    TF_RETURN_IF_ERROR(CheckShape("doutputs", context->input(0), sequence));
    TF_RETURN_IF_ERROR(CheckShape("dhidden", context->input(1), state));
    TF_RETURN_IF_ERROR(CheckShape("dcell", context->input(2), state));
    TF_RETURN_IF_ERROR(CheckShape("outputs", context->input(15), sequence));
    TF_RETURN_IF_ERROR(CheckShape("gates", context->input(16), Sequence(shape, shape.gates())));
    return CheckShape("cells", context->input(17), sequence);
  }

  // Allocates outputs 0 to 2, 7 and 8 of the forward pass.
  tensorflow::Status AllocateResults(tensorflow::OpKernelContext* context, const core::LstmShape& shape,
                                     float** outputs, float** hidden, float** cell, float** gates,
                                     float** cells) const {
    const tensorflow::TensorShape state({shape.batch, shape.units});
    TF_RETURN_IF_ERROR(Allocate(context, 0, Sequence(shape, shape.units), outputs));
    TF_RETURN_IF_ERROR(Allocate(context, 1, state, hidden));
    TF_RETURN_IF_ERROR(Allocate(context, 2, state, cell));
    TF_RETURN_IF_ERROR(Allocate(context, 7, Sequence(shape, shape.gates()), gates));
    return Allocate(context, 8, Sequence(shape, shape.units), cells);
  }

  // Allocates the gradients; without a bias its gradient goes to `memory`.
  tensorflow::Status AllocateGradients(tensorflow::OpKernelContext* context, const core::LstmShape& shape,
                                       core::LstmGradients* gradients, tensorflow::Tensor* memory) const {
    tensorflow::Tensor* sums = nullptr;
    TF_RETURN_IF_ERROR(
        context->forward_input_or_allocate_output({16}, 0, Sequence(shape, shape.gates()), &sums));
    gradients->sums = Floats(sums);
    const tensorflow::TensorShape state({shape.batch, shape.units}), bias = context->input(6).shape();
    TF_RETURN_IF_ERROR(Allocate(context, 1, context->input(4).shape(), &gradients->kernel));
    TF_RETURN_IF_ERROR(Allocate(context, 2, context->input(5).shape(), &gradients->recurrent));
    TF_RETURN_IF_ERROR(Allocate(context, 3, bias, &gradients->bias));
    if (bias.num_elements() == 0) {
      TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_FLOAT, {shape.gates()}, memory));
      gradients->bias = Floats(memory);
    }
    TF_RETURN_IF_ERROR(Allocate(context, 4, state, &gradients->hidden));
    return Allocate(context, 5, state, &gradients->cell);
  }

  const core::QuantizerSpec& hidden_spec() const { return hidden_; }
  const core::QuantizerSpec& cell_spec() const { return cell_; }

  // [batch, time], or [time, batch], and what follows.
  tensorflow::TensorShape Sequence(const core::LstmShape& shape) const {
    return time_major_ ? tensorflow::TensorShape({shape.time, shape.batch})
                       : tensorflow::TensorShape({shape.batch, shape.time});
  }
  tensorflow::TensorShape Sequence(const core::LstmShape& shape, int64_t last) const {
    tensorflow::TensorShape whole = Sequence(shape);
    whole.AddDim(last);
    return whole;
  }

  static const float* Floats(const tensorflow::Tensor& tensor) { return tensor.flat<float>().data(); }
  static float* Floats(tensorflow::Tensor* tensor) { return tensor->flat<float>().data(); }

  static tensorflow::Status CheckShape(const char* name, const tensorflow::Tensor& tensor,
                                       const tensorflow::TensorShape& expected) {
    if (tensor.shape() == expected) return tensorflow::OkStatus();
    return tensorflow::errors::InvalidArgument(name, " must have shape ", expected.DebugString(), ", got ",
                                               tensor.shape().DebugString());
  }

 private:
  static tensorflow::Status Allocate(tensorflow::OpKernelContext* context, int index,
                                     const tensorflow::TensorShape& shape, float** floats) {
    tensorflow::Tensor* output = nullptr;
    TF_RETURN_IF_ERROR(context->allocate_output(index, shape, &output));
    *floats = Floats(output);
    return tensorflow::OkStatus();
  }

  static tensorflow::Status ReadGrid(tensorflow::OpKernelContext* context, int index, const char* name,
                                     const core::QuantizerSpec& spec, core::StateGrid* grid) {
    core::Range range;
    TF_RETURN_IF_ERROR(ReadScalar(context->input(index), "range", &range.min));
    TF_RETURN_IF_ERROR(ReadScalar(context->input(index + 1), "range", &range.max));
    if (!core::IsValid(range)) {
      return tensorflow::errors::InvalidArgument("range must be finite with min < max (or 0 and 0), got min ",
                                                 range.min, " and max ", range.max, " for the ", name,
                                                 " state");
    }
    *grid = core::MakeStateGrid(core::MakeGrid(range, spec));
    return tensorflow::OkStatus();
  }

  core::QuantizerSpec hidden_, cell_;
  bool go_backwards_ = false, time_major_ = false;
};

}  // namespace dqat

#endif  // DQAT_KERNELS_LSTM_ARGUMENTS_H_
