// Dqat>QuantizedLstm on the CPU.
#include "core/lstm.h"
#include "kernels/arguments.h"
#include "kernels/tf_compat.h"

namespace dqat {
namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Status;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::errors::InvalidArgument;

constexpr double kMostElements = 1e15;  // beyond any memory, and far from where int64 ends

// Attributes of both directions, and their common inputs.
class LstmInputs {
 public:
  explicit LstmInputs(OpKernelConstruction* context) {
    const auto read = [&](const std::string& name, core::QuantizerSpec* spec) -> Status {
      TF_RETURN_IF_ERROR(context->GetAttr(name + "_bits", &spec->num_bits));
      TF_RETURN_IF_ERROR(context->GetAttr(name + "_narrow_range", &spec->narrow_range));
      if (spec->num_bits > 16) return InvalidArgument(name, "_bits must be 2 to 16, got ", spec->num_bits);
      return tensorflow::OkStatus();
    };
    OP_REQUIRES_OK(context, read("hidden", &hidden_));
    OP_REQUIRES_OK(context, read("cell", &cell_));
    OP_REQUIRES_OK(context, context->GetAttr("go_backwards", &go_backwards_));
    OP_REQUIRES_OK(context, context->GetAttr("time_major", &time_major_));
  }

  // Reads and checks inputs `first` (x) to `first` + 10 (cell_max).
  Status Read(OpKernelContext* context, int first, core::LstmShape* shape,
              core::LstmArguments* arguments) const {
    const Tensor &x = context->input(first), &kernel = context->input(first + 1);
    const Tensor &recurrent = context->input(first + 2), &bias = context->input(first + 3);
    const Tensor &hidden = context->input(first + 4), &cell = context->input(first + 5);
    const Tensor& mask = context->input(first + 6);
    if (x.dims() != 3) {
      return InvalidArgument("x must be [batch, time, features], or [time, batch, features], got shape ",
                             x.shape().DebugString());
    }
    *shape = {x.dim_size(time_major_ ? 1 : 0), x.dim_size(time_major_ ? 0 : 1), x.dim_size(2),
              recurrent.dims() == 2 ? recurrent.dim_size(0) : 0};
    if (shape->units < 1) {
      return InvalidArgument("recurrent_kernel must be [units, 4 * units] with at least one unit, got shape ",
                             recurrent.shape().DebugString());
    }
    // An x without features takes no memory, whatever its length.
    const double kept = static_cast<double>(shape->batch) * shape->time * shape->kept_row();
    if (kept > kMostElements) {
      return InvalidArgument("x with shape ", x.shape().DebugString(), " is too large for ", shape->units,
                             " units");
    }
    const TensorShape state({shape->batch, shape->units});
    TF_RETURN_IF_ERROR(CheckShape("kernel", kernel, TensorShape({shape->features, shape->gates()})));
    TF_RETURN_IF_ERROR(
        CheckShape("recurrent_kernel", recurrent, TensorShape({shape->units, shape->gates()})));
    if (bias.shape() != TensorShape({0})) {
      TF_RETURN_IF_ERROR(CheckShape("bias", bias, TensorShape({shape->gates()})));
    }
    TF_RETURN_IF_ERROR(CheckShape("initial_hidden", hidden, state));
    TF_RETURN_IF_ERROR(CheckShape("initial_cell", cell, state));
    const bool masked = mask.shape() != TensorShape({0, 0});
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
    TF_RETURN_IF_ERROR(ReadGrid(context, first + 7, "hidden", hidden_, &arguments->hidden_grid));
    return ReadGrid(context, first + 9, "cell", cell_, &arguments->cell_grid);
  }

  // [batch, time], or [time, batch], and what follows.
  TensorShape Sequence(const core::LstmShape& shape) const {
    return time_major_ ? TensorShape({shape.time, shape.batch}) : TensorShape({shape.batch, shape.time});
  }
  TensorShape Sequence(const core::LstmShape& shape, int64_t last) const {
    TensorShape whole = Sequence(shape);
    whole.AddDim(last);
    return whole;
  }

  static const float* Floats(const Tensor& tensor) { return tensor.flat<float>().data(); }
  static float* Floats(Tensor* tensor) { return tensor->flat<float>().data(); }

  static Status CheckShape(const char* name, const Tensor& tensor, const TensorShape& expected) {
    if (tensor.shape() == expected) return tensorflow::OkStatus();
    return InvalidArgument(name, " must have shape ", expected.DebugString(), ", got ",
                           tensor.shape().DebugString());
  }

 private:
  static Status ReadGrid(OpKernelContext* context, int index, const char* name,
                         const core::QuantizerSpec& spec, core::StateGrid* grid) {
    core::Range range;
    TF_RETURN_IF_ERROR(ReadScalar(context->input(index), "range", &range.min));
    TF_RETURN_IF_ERROR(ReadScalar(context->input(index + 1), "range", &range.max));
    if (!core::IsValid(range)) {
      return InvalidArgument("range must be finite with min < max (or 0 and 0), got min ", range.min,
                             " and max ", range.max, " for the ", name, " state");
    }
    *grid = core::MakeStateGrid(core::MakeGrid(range, spec));
    return tensorflow::OkStatus();
  }

  core::QuantizerSpec hidden_, cell_;
  bool go_backwards_ = false, time_major_ = false;
};

class QuantizedLstmOp : public OpKernel {
 public:
  explicit QuantizedLstmOp(OpKernelConstruction* context) : OpKernel(context), inputs_(context) {}

  void Compute(OpKernelContext* context) override {
    core::LstmShape shape;
    core::LstmArguments arguments;
    OP_REQUIRES_OK(context, inputs_.Read(context, 0, &shape, &arguments));
    const TensorShape state({shape.batch, shape.units});
    Tensor *outputs = nullptr, *hidden = nullptr, *cell = nullptr, *kept = nullptr, memory;
    OP_REQUIRES_OK(context, context->allocate_output(0, inputs_.Sequence(shape, shape.units), &outputs));
    OP_REQUIRES_OK(context, context->allocate_output(1, state, &hidden));
    OP_REQUIRES_OK(context, context->allocate_output(2, state, &cell));
    OP_REQUIRES_OK(context, context->allocate_output(7, inputs_.Sequence(shape, shape.kept_row()), &kept));
    OP_REQUIRES_OK(
        context, context->allocate_temp(tensorflow::DT_FLOAT, {core::LstmForwardWorkspace(shape)}, &memory));
    core::LstmResults results = {
        LstmInputs::Floats(outputs), LstmInputs::Floats(hidden), LstmInputs::Floats(cell), {}, {},
        LstmInputs::Floats(kept)};
    core::LstmForward(shape, arguments, &results, LstmInputs::Floats(&memory), TensorFlowThreads(context));
    const float records[] = {results.hidden_record.min, results.hidden_record.max, results.cell_record.min,
                             results.cell_record.max};
    for (int i = 0; i < 4; ++i) {
      Tensor* record = nullptr;
      OP_REQUIRES_OK(context, context->allocate_output(3 + i, {}, &record));
      record->scalar<float>()() = records[i];
    }
  }

 private:
  const LstmInputs inputs_;
};

class QuantizedLstmGradOp : public OpKernel {
 public:
  explicit QuantizedLstmGradOp(OpKernelConstruction* context) : OpKernel(context), inputs_(context) {}

  void Compute(OpKernelContext* context) override {
    core::LstmShape shape;
    core::LstmArguments arguments;
    OP_REQUIRES_OK(context, inputs_.Read(context, 3, &shape, &arguments));
    const TensorShape state({shape.batch, shape.units});
    const TensorShape sequence = inputs_.Sequence(shape, shape.units);
    const Tensor &outputs = context->input(14), &kept = context->input(15);
    OP_REQUIRES_OK(context, LstmInputs::CheckShape("doutputs", context->input(0), sequence));
    OP_REQUIRES_OK(context, LstmInputs::CheckShape("dhidden", context->input(1), state));
    OP_REQUIRES_OK(context, LstmInputs::CheckShape("dcell", context->input(2), state));
    OP_REQUIRES_OK(context, LstmInputs::CheckShape("outputs", outputs, sequence));
    OP_REQUIRES_OK(context, LstmInputs::CheckShape("kept", kept, inputs_.Sequence(shape, shape.kept_row())));
    const TensorShape shapes[] = {inputs_.Sequence(shape, shape.gates()),
                                  context->input(4).shape(),
                                  context->input(5).shape(),
                                  TensorShape({shape.gates()}),
                                  state,
                                  state};
    float* targets[6];
    Tensor without_bias, memory;
    for (int i = 0; i < 6; ++i) {
      Tensor* target = nullptr;
      if (i == 3 && arguments.bias == nullptr) {
        OP_REQUIRES_OK(context, context->allocate_output(i, {0}, &target));
        OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_FLOAT, shapes[i], &without_bias));
        target = &without_bias;
      } else {
        OP_REQUIRES_OK(context, context->allocate_output(i, shapes[i], &target));
      }
      targets[i] = LstmInputs::Floats(target);
    }
    OP_REQUIRES_OK(
        context, context->allocate_temp(tensorflow::DT_FLOAT, {core::LstmBackwardWorkspace(shape)}, &memory));
    core::LstmBackward(shape, arguments, LstmInputs::Floats(outputs), LstmInputs::Floats(kept),
                       {LstmInputs::Floats(context->input(0)), LstmInputs::Floats(context->input(1)),
                        LstmInputs::Floats(context->input(2))},
                       {targets[0], targets[1], targets[2], targets[3], targets[4], targets[5]},
                       LstmInputs::Floats(&memory), TensorFlowThreads(context));
  }

 private:
  const LstmInputs inputs_;
};

REGISTER_KERNEL_BUILDER(Name("Dqat>QuantizedLstm").Device(tensorflow::DEVICE_CPU), QuantizedLstmOp);
REGISTER_KERNEL_BUILDER(Name("Dqat>QuantizedLstmGrad").Device(tensorflow::DEVICE_CPU), QuantizedLstmGradOp);

}  // namespace
}  // namespace dqat
