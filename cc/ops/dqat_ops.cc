// Every operation of the library, on one page.
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace dqat {
namespace {

using tensorflow::Status;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// The number of ranges that the attributes ask for, as far as the shape of x is known.
Status NumRanges(InferenceContext* c, ShapeHandle x, DimensionHandle* ranges) {
  *ranges = c->UnknownDim();
  if (!c->RankKnown(x)) return tensorflow::OkStatus();
  int axis, group_size;
  TF_RETURN_IF_ERROR(c->GetAttr("axis", &axis));
  TF_RETURN_IF_ERROR(c->GetAttr("group_size", &group_size));
  const int rank = c->Rank(x);
  if (axis < -rank || axis >= rank) {
    return tensorflow::errors::InvalidArgument("axis ", axis, " is not an axis of x with shape ",
                                               c->DebugString(x));
  }
  return c->Divide(c->Dim(x, axis), group_size, /*evenly_divisible=*/true, ranges);
}

// Checks that input `index` (min or max) has one value a range, or is a scalar when the range is per tensor.
// `range` returns its shape, refined by what is known of x.
Status RangeShape(InferenceContext* c, ShapeHandle x, int index, ShapeHandle* range) {
  bool per_channel;
  TF_RETURN_IF_ERROR(c->GetAttr("per_channel", &per_channel));
  if (!per_channel) return c->WithRank(c->input(index), 0, range);
  TF_RETURN_IF_ERROR(c->WithRank(c->input(index), 1, range));
  DimensionHandle ranges;
  TF_RETURN_IF_ERROR(NumRanges(c, x, &ranges));
  TF_RETURN_IF_ERROR(c->Merge(ranges, c->Dim(*range, 0), &ranges));
  *range = c->Vector(ranges);
  return tensorflow::OkStatus();
}

Status FakeQuantShape(InferenceContext* c) {
  ShapeHandle range;
  TF_RETURN_IF_ERROR(RangeShape(c, c->input(0), 1, &range));
  TF_RETURN_IF_ERROR(RangeShape(c, c->input(0), 2, &range));
  c->set_output(0, c->input(0));
  if (c->num_outputs() == 3) {
    c->set_output(1, range);
    c->set_output(2, range);
  }
  return tensorflow::OkStatus();
}

Status FakeQuantGradShape(InferenceContext* c) {
  ShapeHandle x, range;
  TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &x));
  TF_RETURN_IF_ERROR(RangeShape(c, x, 2, &range));
  TF_RETURN_IF_ERROR(RangeShape(c, x, 3, &range));
  c->set_output(0, x);
  c->set_output(1, range);
  c->set_output(2, range);
  return tensorflow::OkStatus();
}

Status MinMaxShape(InferenceContext* c) {
  bool per_channel;
  TF_RETURN_IF_ERROR(c->GetAttr("per_channel", &per_channel));
  ShapeHandle range = c->Scalar();
  if (per_channel) {
    DimensionHandle ranges;
    TF_RETURN_IF_ERROR(NumRanges(c, c->input(0), &ranges));
    range = c->Vector(ranges);
  }
  c->set_output(0, range);
  c->set_output(1, range);
  return tensorflow::OkStatus();
}

Status FitRangeShape(InferenceContext* c) {
  ShapeHandle range;
  TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &range));
  c->set_output(0, range);
  c->set_output(1, range);
  return tensorflow::OkStatus();
}

REGISTER_OP("Dqat>FakeQuant")
    .Input("x: T")
    .Input("min: float")
    .Input("max: float")
    .Output("y: T")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .Attr("per_channel: bool = false")
    .Attr("axis: int = -1")
    .Attr("group_size: int >= 1 = 1")
    .SetShapeFn(FakeQuantShape)
    .Doc(R"doc(
Rounds x to the levels of the nudged range [min, max].

x: of any shape.
min: a scalar, or [channels] where per_channel; +inf (with max = -inf) where there is no range yet:
  then the values pass through unchanged.
max: like min.
y: like x.
num_bits: 2 to 16.
narrow_range: uses the levels 1 .. 2^num_bits - 1 instead of 0 .. 2^num_bits - 1.
axis: the channel axis, where per_channel; negative values count from the end.
group_size: so many consecutive channels share a range; min and max are [channels / group_size].
)doc");

REGISTER_OP("Dqat>FakeQuantTrack")
    .Input("x: T")
    .Input("min: float")
    .Input("max: float")
    .Output("y: T")
    .Output("batch_min: float")
    .Output("batch_max: float")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .Attr("per_channel: bool = false")
    .Attr("axis: int = -1")
    .Attr("group_size: int >= 1 = 1")
    .SetShapeFn(FakeQuantShape)
    .Doc(R"doc(
Dqat>FakeQuant that records the smallest and largest value of x in the same pass.

batch_min: like min; +inf where x is empty, -inf where x has a NaN or an Inf.
batch_max: like max; -inf where x is empty, +inf where x has a NaN or an Inf.
)doc");

REGISTER_OP("Dqat>FakeQuantGrad")
    .Input("dy: T")
    .Input("x: T")
    .Input("min: float")
    .Input("max: float")
    .Output("dx: T")
    .Output("dmin: float")
    .Output("dmax: float")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .Attr("per_channel: bool = false")
    .Attr("axis: int = -1")
    .Attr("group_size: int >= 1 = 1")
    .SetShapeFn(FakeQuantGradShape)
    .Doc(R"doc(
The straight-through gradient of Dqat>FakeQuant, to all three inputs in one pass.

dx: dy inside the nudged range, 0 outside.
dmin: the sum of dy where x lies below the nudged range; the same bits on any number of threads.
dmax: the sum of dy where x lies above it.
)doc");

REGISTER_OP("Dqat>MinMax")
    .Input("x: T")
    .Output("batch_min: float")
    .Output("batch_max: float")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .Attr("per_channel: bool = false")
    .Attr("axis: int = -1")
    .Attr("group_size: int >= 1 = 1")
    .SetShapeFn(MinMaxShape)
    .Doc(R"doc(
The record of x alone, as Dqat>FakeQuantTrack gives it.
)doc");

REGISTER_OP("Dqat>FitRange")
    .Input("min: float")
    .Input("max: float")
    .Output("fitted_min: float")
    .Output("fitted_max: float")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .Attr("symmetric: bool = false")
    .Attr("power_of_two: bool = false")
    .SetShapeFn(FitRangeShape)
    .Doc(R"doc(
The range to quantize with, from a recorded one: contains 0, and is symmetric or a power of two on request.

min: of any shape; an empty range (+inf, -inf), and one that is not finite or has min > max, stays as it is.
max: like min.
symmetric: 0 stands on the middle level.
power_of_two: symmetric, and the scale is a power of two, with a range of 1 to 64 (TFLite's int16 cell).
)doc");

}  // namespace
}  // namespace dqat
