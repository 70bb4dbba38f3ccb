// Every operation of the library, on one page.
#include "core/element.h"
#include "core/histogram.h"
#include "tensorflow/core/framework/common_shape_fns.h"
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

// Checks that inputs `index` and `index + 1` (min and max, or step and signed) have one value a range, or are
// scalars where the range is per tensor. `range` returns their shape, refined by what is known of x.
Status RangeShape(InferenceContext* c, ShapeHandle x, int index, ShapeHandle* range) {
  bool per_channel;
  TF_RETURN_IF_ERROR(c->GetAttr("per_channel", &per_channel));
  TF_RETURN_IF_ERROR(c->Merge(c->input(index), c->input(index + 1), range));
  if (!per_channel) return c->WithRank(*range, 0, range);
  TF_RETURN_IF_ERROR(c->WithRank(*range, 1, range));
  DimensionHandle ranges;
  TF_RETURN_IF_ERROR(NumRanges(c, x, &ranges));
  TF_RETURN_IF_ERROR(c->Merge(ranges, c->Dim(*range, 0), &ranges));
  *range = c->Vector(ranges);
  return tensorflow::OkStatus();
}

Status FakeQuantShape(InferenceContext* c) {
  ShapeHandle range;
  TF_RETURN_IF_ERROR(RangeShape(c, c->input(0), 1, &range));
  c->set_output(0, c->input(0));
  return tensorflow::OkStatus();
}

// The words for so many values; an unknown number where that is unknown.
ShapeHandle ReachShape(InferenceContext* c, ShapeHandle x) {
  const DimensionHandle values = c->NumElements(x);
  if (!c->ValueKnown(values)) return c->Vector(c->UnknownDim());
  return c->Vector(core::ReachWords(c->Value(values)));
}

Status FakeQuantTrackShape(InferenceContext* c) {
  ShapeHandle range;
  TF_RETURN_IF_ERROR(RangeShape(c, c->input(0), 1, &range));
  bool per_channel;
  TF_RETURN_IF_ERROR(c->GetAttr("per_channel", &per_channel));
  c->set_output(0, c->input(0));
  c->set_output(1, range);
  c->set_output(2, range);
  c->set_output(3, per_channel ? c->Vector(0) : ReachShape(c, c->input(0)));
  return tensorflow::OkStatus();
}

Status ReachGradShape(InferenceContext* c) {
  ShapeHandle reach;
  TF_RETURN_IF_ERROR(c->Merge(ReachShape(c, c->input(0)), c->input(1), &reach));
  c->set_output(0, c->input(0));
  c->set_output(1, c->Scalar());
  c->set_output(2, c->Scalar());
  return tensorflow::OkStatus();
}

Status FakeQuantGradShape(InferenceContext* c) {
  ShapeHandle x, range;
  TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &x));
  TF_RETURN_IF_ERROR(RangeShape(c, x, 2, &range));
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

// Scalars from input `first` on to the last.
Status RequireScalars(InferenceContext* c, int first) {
  ShapeHandle scalar;
  for (int index = first; index < c->num_inputs(); ++index) {
    TF_RETURN_IF_ERROR(c->WithRank(c->input(index), 0, &scalar));
  }
  return tensorflow::OkStatus();
}

ShapeHandle CountsShape(InferenceContext* c) { return c->Vector(core::HistogramGrid::kBins); }

Status HistogramShape(InferenceContext* c) {
  c->set_output(0, c->Scalar());
  c->set_output(1, c->Scalar());
  c->set_output(2, CountsShape(c));
  return tensorflow::OkStatus();
}

Status FakeQuantHistogramShape(InferenceContext* c) {
  TF_RETURN_IF_ERROR(RequireScalars(c, 1));
  c->set_output(0, c->input(0));
  c->set_output(1, c->Scalar());
  c->set_output(2, c->Scalar());
  c->set_output(3, CountsShape(c));
  return tensorflow::OkStatus();
}

Status HistogramRangeShape(InferenceContext* c) {
  ShapeHandle counts;
  TF_RETURN_IF_ERROR(c->Merge(c->input(0), CountsShape(c), &counts));
  TF_RETURN_IF_ERROR(RequireScalars(c, 1));
  c->set_output(0, c->Scalar());
  c->set_output(1, c->Scalar());
  return tensorflow::OkStatus();
}

Status FakeQuantLearnedShape(InferenceContext* c) {
  ShapeHandle steps, scalar;
  TF_RETURN_IF_ERROR(RangeShape(c, c->input(0), 1, &steps));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 0, &scalar));
  c->set_output(0, c->input(0));
  c->set_output(1, steps);
  c->set_output(2, steps);
  return tensorflow::OkStatus();
}

Status FakeQuantLearnedGradShape(InferenceContext* c) {
  ShapeHandle x, steps, scalar;
  TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &x));
  TF_RETURN_IF_ERROR(RangeShape(c, x, 2, &steps));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(4), 0, &scalar));
  c->set_output(0, x);
  c->set_output(1, steps);
  return tensorflow::OkStatus();
}

// What the inputs of Dqat>QuantizedLstm, from input `first` on, say about each other.
struct LstmDimensions {
  DimensionHandle batch, time, features, units, gates;
  bool time_major = false;

  ShapeHandle Sequence(InferenceContext* c, DimensionHandle last) const {
    return time_major ? c->MakeShape({time, batch, last}) : c->MakeShape({batch, time, last});
  }

  Status Read(InferenceContext* c, int first) {
    ShapeHandle x, kernel, recurrent, bias, mask, state, range;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(first), 3, &x));
    TF_RETURN_IF_ERROR(c->WithRank(c->input(first + 1), 2, &kernel));
    TF_RETURN_IF_ERROR(c->WithRank(c->input(first + 2), 2, &recurrent));
    TF_RETURN_IF_ERROR(c->WithRank(c->input(first + 3), 1, &bias));
    TF_RETURN_IF_ERROR(c->GetAttr("time_major", &time_major));
    batch = c->Dim(x, time_major ? 1 : 0);
    time = c->Dim(x, time_major ? 0 : 1);
    TF_RETURN_IF_ERROR(c->Merge(c->Dim(x, 2), c->Dim(kernel, 0), &features));
    TF_RETURN_IF_ERROR(c->Merge(c->Dim(kernel, 1), c->Dim(recurrent, 1), &gates));
    TF_RETURN_IF_ERROR(c->Divide(gates, 4, /*evenly_divisible=*/true, &units));
    TF_RETURN_IF_ERROR(c->Merge(units, c->Dim(recurrent, 0), &units));
    for (int i : {4, 5}) {
      TF_RETURN_IF_ERROR(c->WithRank(c->input(first + i), 2, &state));
      TF_RETURN_IF_ERROR(c->Merge(batch, c->Dim(state, 0), &batch));
      TF_RETURN_IF_ERROR(c->Merge(units, c->Dim(state, 1), &units));
    }
    for (int i = 7; i < 11; ++i) TF_RETURN_IF_ERROR(c->WithRank(c->input(first + i), 0, &range));
    TF_RETURN_IF_ERROR(c->Multiply(units, 4, &gates));
    if (!IsEmpty(c, c->Dim(bias, 0))) TF_RETURN_IF_ERROR(Fits(c, bias, c->Vector(gates)));
    ShapeHandle scales;
    TF_RETURN_IF_ERROR(c->WithRank(c->input(first + 11), 2, &scales));
    if (!IsEmpty(c, c->Dim(scales, 0))) TF_RETURN_IF_ERROR(Fits(c, scales, c->Matrix(3, 4)));
    TF_RETURN_IF_ERROR(c->WithRank(c->input(first + 6), 2, &mask));
    if (IsEmpty(c, c->Dim(mask, 0)) && IsEmpty(c, c->Dim(mask, 1))) return tensorflow::OkStatus();
    return Fits(c, mask, time_major ? c->Matrix(time, batch) : c->Matrix(batch, time));
  }

  // Of what may be left out by being empty.
  static bool IsEmpty(InferenceContext* c, DimensionHandle size) {
    return c->ValueKnown(size) && c->Value(size) == 0;
  }

  static Status Fits(InferenceContext* c, ShapeHandle given, ShapeHandle wanted) {
    return c->Merge(given, wanted, &given);
  }
};

Status QuantizedLstmShape(InferenceContext* c) {
  LstmDimensions d;
  TF_RETURN_IF_ERROR(d.Read(c, 0));
  c->set_output(0, d.Sequence(c, d.units));
  c->set_output(1, c->Matrix(d.batch, d.units));
  c->set_output(2, c->Matrix(d.batch, d.units));
  for (int i = 3; i < 7; ++i) c->set_output(i, c->Scalar());
  c->set_output(7, d.Sequence(c, d.gates));
  c->set_output(8, d.Sequence(c, d.units));
  return tensorflow::OkStatus();
}

Status QuantizedLstmGradShape(InferenceContext* c) {
  LstmDimensions d;
  TF_RETURN_IF_ERROR(d.Read(c, 3));
  const ShapeHandle state = c->Matrix(d.batch, d.units);
  for (int i : {0, 15}) TF_RETURN_IF_ERROR(d.Fits(c, c->input(i), d.Sequence(c, d.units)));
  for (int i : {1, 2}) TF_RETURN_IF_ERROR(d.Fits(c, c->input(i), state));
  TF_RETURN_IF_ERROR(d.Fits(c, c->input(16), d.Sequence(c, d.gates)));
  TF_RETURN_IF_ERROR(d.Fits(c, c->input(17), d.Sequence(c, d.units)));
  c->set_output(0, d.Sequence(c, d.gates));
  c->set_output(1, c->Matrix(d.features, d.gates));
  c->set_output(2, c->Matrix(d.units, d.gates));
  c->set_output(3, c->input(6));
  c->set_output(4, state);
  c->set_output(5, state);
  return tensorflow::OkStatus();
}

// What the inputs of Dqat>GruStep, from input `first` on, say about each other.
Status ReadGruStep(InferenceContext* c, int first, ShapeHandle* sums, ShapeHandle* hidden) {
  constexpr int kPoints = 10;
  ShapeHandle mask, range;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(first + 2), 2, hidden));
  DimensionHandle batch = c->Dim(*hidden, 0), units = c->Dim(*hidden, 1), parts;
  for (int i : {0, 1}) {
    TF_RETURN_IF_ERROR(c->WithRank(c->input(first + i), 2, sums));
    TF_RETURN_IF_ERROR(c->Merge(batch, c->Dim(*sums, 0), &batch));
    TF_RETURN_IF_ERROR(c->Divide(c->Dim(*sums, 1), 3, /*evenly_divisible=*/true, &parts));
    TF_RETURN_IF_ERROR(c->Merge(units, parts, &units));
  }
  TF_RETURN_IF_ERROR(c->WithRank(c->input(first + 3), 1, &mask));
  if (!LstmDimensions::IsEmpty(c, c->Dim(mask, 0))) {
    TF_RETURN_IF_ERROR(LstmDimensions::Fits(c, mask, c->Vector(batch)));
  }
  for (int i : {4, 5}) TF_RETURN_IF_ERROR(c->Merge(c->input(first + i), c->Vector(kPoints), &range));
  TF_RETURN_IF_ERROR(c->Multiply(units, 3, &parts));
  *hidden = c->Matrix(batch, units);
  *sums = c->Matrix(batch, parts);
  return tensorflow::OkStatus();
}

Status GruStepShape(InferenceContext* c) {
  ShapeHandle sums, hidden;
  TF_RETURN_IF_ERROR(ReadGruStep(c, 0, &sums, &hidden));
  c->set_output(0, hidden);
  for (int i : {1, 2}) c->set_output(i, c->Vector(10));
  return tensorflow::OkStatus();
}

Status GruStepGradShape(InferenceContext* c) {
  ShapeHandle sums, hidden;
  TF_RETURN_IF_ERROR(ReadGruStep(c, 1, &sums, &hidden));
  TF_RETURN_IF_ERROR(LstmDimensions::Fits(c, c->input(0), hidden));
  c->set_output(0, sums);
  c->set_output(1, sums);
  c->set_output(2, hidden);
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
    .Output("reach: int64")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .Attr("per_channel: bool = false")
    .Attr("axis: int = -1")
    .Attr("group_size: int >= 1 = 1")
    .Attr("activation: {'linear', 'relu', 'relu6'} = 'linear'")
    .SetShapeFn(FakeQuantTrackShape)
    .Doc(R"doc(
Dqat>FakeQuant that records the smallest and largest value of x in the same pass.

batch_min: like min; +inf where x is empty, -inf where x has a NaN or an Inf.
batch_max: like max; -inf where x is empty, +inf where x has a NaN or an Inf.
reach: [ceil(size of x / 32)], all that Dqat>ReachGrad needs of x: two bits a value. Empty where per_channel.
activation: computed in the same pass; what is quantized and recorded is its result. Other than linear for
  one range per tensor only.
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

REGISTER_OP("Dqat>ReachGrad")
    .Input("dy: T")
    .Input("reach: int64")
    .Output("dx: T")
    .Output("dmin: float")
    .Output("dmax: float")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .SetShapeFn(ReachGradShape)
    .Doc(R"doc(
The straight-through gradient of Dqat>FakeQuantTrack, per tensor. It needs neither x nor the range: so x need not be
kept, and Dqat>FakeQuantTrack may write y over it.

reach: of Dqat>FakeQuantTrack. Bit i of a word, with bit i + 32 before it, is of value i of its 32: 00 where the
  slope reaches nothing, 01 x, 10 min, 11 max.
dx: dy where x is inside the nudged range and the activation passes its gradient on, else 0.
dmin: the sum of dy where the activation of x lies below the nudged range; the same bits on any number of threads.
dmax: the sum of dy where it lies above.
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

REGISTER_OP("Dqat>Histogram")
    .Input("x: T")
    .Output("batch_min: float")
    .Output("batch_max: float")
    .Output("counts: int64")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .SetShapeFn(HistogramShape)
    .Doc(R"doc(
The record of x and its histogram, as Dqat>FakeQuantHistogram gives them.
)doc");

REGISTER_OP("Dqat>FakeQuantHistogram")
    .Input("x: T")
    .Input("min: float")
    .Input("max: float")
    .Output("y: T")
    .Output("batch_min: float")
    .Output("batch_max: float")
    .Output("counts: int64")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .SetShapeFn(FakeQuantHistogramShape)
    .Doc(R"doc(
Dqat>FakeQuantTrack, per tensor, that also counts the values of x in the same pass.

A bin is the sign, the exponent (2^-24 to 2^15) and the upper 5 bits of the mantissa of a value, the same for all
tensors. So the counts of parts of a tensor add up exactly to those of the whole.

counts: [2561], in the order of the values; the middle bin holds what is smaller than 2^-24 in magnitude, the
  first and last also what is larger than 2^16. A NaN or an Inf is in no bin.
)doc");

REGISTER_OP("Dqat>PercentileRange")
    .Input("counts: int64")
    .Input("min: float")
    .Input("max: float")
    .Input("lower: double")
    .Input("upper: double")
    .Output("range_min: float")
    .Output("range_max: float")
    .SetShapeFn(HistogramRangeShape)
    .Doc(R"doc(
The range between two percentiles of a histogram, outwards to the next bin edges, never wider than min and max.

counts: of Dqat>FakeQuantHistogram, in any unit.
min: the exact smallest value, or 0 where none is negative; +inf (with max = -inf) where nothing was seen: then
  the range is empty too.
max: like min.
lower: at most so many percent of the values lie below the range; 0 to less than 50.
upper: at most 100 - upper percent lie above; more than 50, to 100.
)doc");

REGISTER_OP("Dqat>MinimumErrorRange")
    .Input("counts: int64")
    .Input("min: float")
    .Input("max: float")
    .Output("range_min: float")
    .Output("range_max: float")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .Attr("symmetric: bool = false")
    .Attr("power_of_two: bool = false")
    .SetShapeFn(HistogramRangeShape)
    .Doc(R"doc(
The range with the smallest expected squared quantization error of a histogram, never wider than min and max.

It is what to give to Dqat>FitRange with the same options; the error is that after fitting.

counts: of Dqat>FakeQuantHistogram, in any unit.
min: as in Dqat>PercentileRange.
max: like min.
)doc");

REGISTER_OP("Dqat>FakeQuantLearned")
    .Input("x: T")
    .Input("step: float")
    .Input("signed: bool")
    .Input("elements: int64")
    .Output("y: T")
    .Output("batch_min: float")
    .Output("batch_max: float")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .Attr("per_channel: bool = false")
    .Attr("axis: int = -1")
    .Attr("group_size: int >= 1 = 1")
    .SetShapeFn(FakeQuantLearnedShape)
    .Doc(R"doc(
Rounds x to the multiples of a step that is trained (LSQ, Esser et al. 2020), and records its extremes.

step: a scalar, or [channels] where per_channel; 0 where it is not known yet: then the values pass through
  unchanged.
signed: like step; levels -2^(num_bits-1) .. 2^(num_bits-1) - 1 (one less at the negative end with narrow_range), else
  0 .. 2^num_bits - 1 (one less at the positive end).
elements: N of the gradient's scale 1 / sqrt(N * highest level); used by the gradient alone.
axis: as in Dqat>FakeQuant; so is group_size.
batch_min: as in Dqat>FakeQuantTrack.
batch_max: as in Dqat>FakeQuantTrack.
)doc");

REGISTER_OP("Dqat>FakeQuantLearnedGrad")
    .Input("dy: T")
    .Input("x: T")
    .Input("step: float")
    .Input("signed: bool")
    .Input("elements: int64")
    .Output("dx: T")
    .Output("dstep: float")
    .Attr("T: {float, half, bfloat16} = DT_FLOAT")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .Attr("per_channel: bool = false")
    .Attr("axis: int = -1")
    .Attr("group_size: int >= 1 = 1")
    .SetShapeFn(FakeQuantLearnedGradShape)
    .Doc(R"doc(
The gradient of Dqat>FakeQuantLearned to x and to the step, in one pass.

dx: dy strictly between the lowest and the highest level, 0 elsewhere.
dstep: the scaled sum of dy times the level less x / step, or times the outermost level where x is clipped; the
  same bits on any number of threads.
)doc");

REGISTER_OP("Dqat>MatMul")
    .Input("a: float")
    .Input("b: float")
    .Output("product: float")
    .Attr("transpose_a: bool = false")
    .Attr("transpose_b: bool = false")
    .SetShapeFn(tensorflow::shape_inference::MatMulShape)
    .Doc(R"doc(
The product of two matrices; a row of it is a function of that row of a, and of b, to the bit.

Neither the number of rows nor the number of threads changes a row's bits, as they may in TensorFlow's MatMul.

a: [rows, depth], or [depth, rows] where transpose_a.
b: [depth, columns], or [columns, depth] where transpose_b.
product: [rows, columns].
)doc");

REGISTER_OP("Dqat>QuantizedLstm")
    .Input("x: float")
    .Input("kernel: float")
    .Input("recurrent_kernel: float")
    .Input("bias: float")
    .Input("initial_hidden: float")
    .Input("initial_cell: float")
    .Input("mask: bool")
    .Input("hidden_min: float")
    .Input("hidden_max: float")
    .Input("cell_min: float")
    .Input("cell_max: float")
    .Input("operand_scales: float")
    .Output("outputs: float")
    .Output("hidden: float")
    .Output("cell: float")
    .Output("hidden_batch_min: float")
    .Output("hidden_batch_max: float")
    .Output("cell_batch_min: float")
    .Output("cell_batch_max: float")
    .Output("gates: float")
    .Output("cells: float")
    .Attr("hidden_bits: int >= 2 = 8")
    .Attr("hidden_narrow_range: bool = false")
    .Attr("cell_bits: int >= 2 = 16")
    .Attr("cell_narrow_range: bool = false")
    .Attr("go_backwards: bool = false")
    .Attr("time_major: bool = false")
    .SetShapeFn(QuantizedLstmShape)
    .Doc(R"doc(
An LSTM on the quantization points of TFLite's integer LSTM, over a whole sequence.

Gates saturate at ±8; the cell state is clipped at ±10 and fake-quantized; the hidden state, which is the output,
is fake-quantized. The extremes of both states before their quantization are recorded; masked timesteps, which
keep the states, are not. A row's results are a function of that row and of the weights, to the bit.

x: [batch, time, features], quantized.
kernel: [features, 4 * units], quantized; gates in Keras' order: input, forget, cell, output.
recurrent_kernel: [units, 4 * units], quantized.
bias: [4 * units], or [0] for none.
initial_hidden: [batch, units].
initial_cell: [batch, units].
mask: [batch, time], false where a timestep is left out; or [0, 0] for none.
hidden_min: a scalar; +inf (with hidden_max = -inf) where there is no range yet: then values pass through.
hidden_max: like hidden_min.
cell_min: like hidden_min.
cell_max: like hidden_min.
operand_scales: [3, 4], for each gate the scales of x, of its kernel and of its recurrent kernel: products are those of
  integers, and all is rounded as TFLite's integer kernel rounds it, with its fixed-point logistic and tanh, once both
  ranges are known and the cell state's scale is a power of two from 2^-15 to 2^-9. Or [0, 0]: gates are float32.
outputs: [batch, time, units]; in the order of computation.
hidden: [batch, units], after the last timestep.
cell: [batch, units], after the last timestep.
hidden_batch_min: as batch_min in Dqat>FakeQuantTrack; so are the other three.
gates: [batch, time, 4 * units], in the order of x, for the gradient: i, f, g and o after their activations; where one
  was clipped before, i, f and o are negative and g is four times as large.
cells: [batch, time, units], in the order of x, for the gradient: the cell state after each timestep.
go_backwards: from the last timestep to the first.
time_major: x, mask, outputs, gates and cells are [time, batch, ...].
)doc");

REGISTER_OP("Dqat>QuantizedLstmGrad")
    .Input("doutputs: float")
    .Input("dhidden: float")
    .Input("dcell: float")
    .Input("x: float")
    .Input("kernel: float")
    .Input("recurrent_kernel: float")
    .Input("bias: float")
    .Input("initial_hidden: float")
    .Input("initial_cell: float")
    .Input("mask: bool")
    .Input("hidden_min: float")
    .Input("hidden_max: float")
    .Input("cell_min: float")
    .Input("cell_max: float")
    .Input("operand_scales: float")
    .Input("outputs: float")
    .Input("gates: float")
    .Input("cells: float")
    .Output("dsums: float")
    .Output("dkernel: float")
    .Output("drecurrent_kernel: float")
    .Output("dbias: float")
    .Output("dinitial_hidden: float")
    .Output("dinitial_cell: float")
    .Attr("hidden_bits: int >= 2 = 8")
    .Attr("hidden_narrow_range: bool = false")
    .Attr("cell_bits: int >= 2 = 16")
    .Attr("cell_narrow_range: bool = false")
    .Attr("go_backwards: bool = false")
    .Attr("time_major: bool = false")
    .SetShapeFn(QuantizedLstmGradShape)
    .Doc(R"doc(
The straight-through gradient of Dqat>QuantizedLstm, but for that of x: dsums times the kernel, transposed.

It stops where a gate or the cell state was clipped, and where a state lay outside of its nudged range. The ranges
get none. The same bits on any number of threads.

doutputs: [batch, time, units]: what arrives at the outputs.
dhidden: [batch, units]: at the last hidden state.
dcell: [batch, units]: at the last cell state.
outputs: of Dqat>QuantizedLstm, as gates and cells are.
dsums: [batch, time, 4 * units], in the order of x; in the memory of gates where nobody else needs them.
)doc");

REGISTER_OP("Dqat>GruStep")
    .Input("projected: float")
    .Input("product: float")
    .Input("hidden: float")
    .Input("mask: bool")
    .Input("min: float")
    .Input("max: float")
    .Output("hidden_after: float")
    .Output("batch_min: float")
    .Output("batch_max: float")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .SetShapeFn(GruStepShape)
    .Doc(R"doc(
The elementwise part of a GRU's timestep, reset gate after the recurrent product, with ten quantization points.

They are, in this order: the product, the gates' sum, the gates, reset gate times product, the candidate's sum, the
candidate, what is kept of the state, 1 - update gate, what is new, and the new state. Sums saturate at ±8.

projected: [batch, 3 * units], quantized: the input's share of update gate, reset gate and candidate.
product: [batch, 3 * units]: the hidden state times the recurrent weights, with bias.
hidden: [batch, units]: the state before, quantized.
mask: [batch], false where the state stays and nothing is recorded; or [0] for none.
min: [10], one for each point; +inf (with max = -inf) where there is no range yet: then values pass through.
max: like min.
hidden_after: [batch, units].
batch_min: [10]; as batch_min in Dqat>FakeQuantTrack, for each point.
batch_max: like batch_min.
)doc");

REGISTER_OP("Dqat>GruStepGrad")
    .Input("slope: float")
    .Input("projected: float")
    .Input("product: float")
    .Input("hidden: float")
    .Input("mask: bool")
    .Input("min: float")
    .Input("max: float")
    .Output("dprojected: float")
    .Output("dproduct: float")
    .Output("dhidden: float")
    .Attr("num_bits: int >= 2 = 8")
    .Attr("narrow_range: bool = false")
    .SetShapeFn(GruStepGradShape)
    .Doc(R"doc(
The straight-through gradient of Dqat>GruStep, which computes the timestep again. The ranges get none.

slope: [batch, units]: what arrives at hidden_after.
)doc");

}  // namespace
}  // namespace dqat
