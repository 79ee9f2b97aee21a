"""Small models for every operator with a rule: channels made by a Conv, Gemm or MatMul go through it to a consumer.

Each case says which producers must lose channels (all others must not), and for what is frozen, with which reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One model. slims: the output names of the producers that lose channels, separated by spaces; "" = nothing may.

    refused: what the reasons of the refusals must match (regular expressions). left: how often an operator must be in
    the result. sizes: values for the symbolic dimensions at which the result is run.
    """

    name: str
    text: str
    slims: str
    refused: tuple[str, ...] = ()
    opset: int = 17
    ir: int = 8
    left: Mapping[str, int] = field(default_factory=dict)
    sizes: tuple[Mapping[str, int], ...] = ({"N": 1}, {"N": 3})


CASES: list[Case] = []


def case(name: str, text: str, slims: str = "a", refused: str | tuple[str, ...] = (), **more: object) -> None:
    """Add a case. Names are unique."""
    assert all(other.name != name for other in CASES), name
    reasons = (refused,) if isinstance(refused, str) else refused
    CASES.append(Case(name, text, slims, reasons, **more))  # type: ignore[arg-type]


def conv(body: str, more: str = "", last: str = "y = Conv (u, v, c)", out: str = "float[N, 4, P, Q] y") -> str:
    """Conv a of 10 channels, `body` from a to u, Conv y of 4."""
    return f"""g (float[N, 3, 8, 8] x) => ({out})
    <float[10, 3, 3, 3] w, float[10] b, float[4, 10, 1, 1] v, float[4] c{", " + more if more else ""}>
    {{ a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
       {body}
       {last} }}"""


def dense(body: str, more: str = "", last: str = "y = Gemm (u, v, c)", out: str = "float[N, 4] y") -> str:
    """Gemm a of 10 channels, `body` from a to u, Gemm y of 4."""
    return f"""g (float[N, 6] x) => ({out})
    <float[6, 10] w, float[10] b, float[10, 4] v, float[4] c{", " + more if more else ""}>
    {{ a = Gemm (x, w, b)
       {body}
       {last} }}"""


# -- Conv and ConvTranspose -------------------------------------------------------------------------------------------

case(
    "conv_1d_strides_dilations_pads",
    """g (float[N, 3, 20] x) => (float[N, 4, P] y) <float[8, 3, 3] w, float[8] b, float[4, 8, 5] v>
    { a = Conv <strides = [2], dilations = [2], pads = [2, 1]> (x, w, b)
      u = Relu (a)
      y = Conv <pads = [3, 0]> (u, v) }""",
)
case(
    "conv_2d_asymmetric",
    """g (float[N, 3, 9, 11] x) => (float[N, 4, P, Q] y) <float[9, 3, 3, 2] w, float[4, 9, 3, 3] v, float[4] c>
    { a = Conv <strides = [2, 1], dilations = [1, 3], pads = [1, 0, 2, 1]> (x, w)
      y = Conv <pads = [0, 2, 1, 0], strides = [1, 2]> (a, v, c) }""",
)
case(
    "conv_3d",
    """g (float[N, 2, 5, 6, 4] x) => (float[N, 3, P, Q, R] y)
    <float[6, 2, 3, 3, 1] w, float[6] b, float[3, 6, 2, 1, 2] v>
    { a = Conv <pads = [1, 1, 0, 0, 1, 0], strides = [1, 2, 1]> (x, w, b)
      y = Conv (a, v) }""",
)
case(
    "conv_auto_pad",
    """g (float[N, 3, 7, 7] x) => (float[N, 4, P, Q] y) <float[8, 3, 3, 3] w, float[8] b, float[4, 8, 3, 3] v>
    { a = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w, b)
      y = Conv <auto_pad = "SAME_LOWER"> (a, v) }""",
)
case(
    "conv_dynamic_space",
    """g (float[N, 3, H, W] x) => (float[N, 4] y)
    <float[8, 3, 3, 3] w, float[8] b, float[6, 8, 3, 3] k, float[6] d, float[6, 4] v>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      r = Relu (a)
      e = Conv <strides = [2, 2]> (r, k, d)
      p = GlobalAveragePool (e)
      f = Flatten (p)
      y = Gemm (f, v) }""",
    "a e",
    sizes=({"N": 1, "H": 9, "W": 12}, {"N": 3, "H": 15, "W": 8}),
)
case(
    "conv_depthwise",
    conv("d = Conv <group = 10, pads = [1, 1, 1, 1]> (a, k, e) u = Relu (d)", "float[10, 1, 3, 3] k, float[10] e"),
    left={"Conv": 3},
)
case(
    "conv_depthwise_multiplier_2",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, P, Q] y)
    <float[6, 3, 3, 3] w, float[6] b, float[12, 1, 3, 3] k, float[12] e, float[4, 12, 1, 1] v>
    { a = Conv (x, w, b)
      d = Conv <group = 6> (a, k, e)
      u = LeakyRelu <alpha = 0.2> (d)
      y = Conv (u, v) }""",
)
case(
    "conv_depthwise_with_batchnorm",
    conv(
        "d = Conv <group = 10> (a, k) n = BatchNormalization (d, ga, be, me, var) u = Relu (n)",
        "float[10, 1, 3, 3] k, float[10] ga, float[10] be, float[10] me, float[10] var",
    ),
    left={"BatchNormalization": 0},
)
case(
    "conv_grouped_with_batchnorm",
    conv(
        """r = Relu (a)
        e = Conv (r, q)
        d = Conv <group = 2> (e, k)
        n = BatchNormalization (d, ga, be, me, var)
        u = Relu (n)""",
        "float[10, 10, 1, 1] q, float[10, 5, 3, 3] k, float[10] ga, float[10] be, float[10] me, float[10] var",
    ),
    "a e d",
    left={"BatchNormalization": 0},
)
case(
    "conv_depthwise_on_input",
    """g (float[N, 4, 8, 8] x) => (float[N, 3, P, Q] y)
    <float[4, 1, 3, 3] k, float[9, 4, 1, 1] w, float[9] b, float[3, 9, 1, 1] v>
    { d = Conv <group = 4> (x, k)
      a = Conv (d, w, b)
      y = Conv (a, v) }""",
    refused="depthwise Conv on an axis without channels",
)
case(
    "conv_grouped",
    conv("u = Conv <group = 2> (a, k)", "float[10, 5, 3, 3] k"),
    "a u",
)
case(
    "conv_weight_is_an_input",
    """g (float[N, 3, 8, 8] x, float[4, 10, 1, 1] v) => (float[N, 4, P, Q] y) <float[10, 3, 3, 3] w>
    { a = Conv (x, w)
      y = Conv (a, v) }""",
    "",
    "the weight or the bias is not a constant",
)
case(
    "conv_bias_is_an_input",
    """g (float[N, 3, 8, 8] x, float[10] b) => (float[N, 4, P, Q] y) <float[10, 3, 3, 3] w, float[4, 10, 1, 1] v>
    { a = Conv (x, w, b)
      y = Conv (a, v) }""",
    "",
    "the weight or the bias is not a constant",
)
case(
    "conv_one_channel_broadcasts",
    conv("m = Conv (x, k) s = Sigmoid (m) u = Mul (p, s) ", "float[1, 3, 1, 1] k").replace("{ a =", "{ p ="),
    "p",
)
case(
    "conv_weight_shared_by_two",
    """g (float[N, 3, 8, 8] x, float[N, 3, 8, 8] z) => (float[N, 4, 8, 8] y, float[N, 2, 8, 8] t)
    <float[10, 3, 1, 1] w, float[10] b, float[4, 10, 1, 1] v, float[2, 10, 1, 1] q, float[2] c>
    { a = Conv (x, w, b)
      e = Conv (z, w, b)
      f = Relu (e)
      y = Conv (a, v)
      t = Conv (f, q, c) }""",
    "a e",
)
case(
    "conv_weight_shared_through_identity",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, P, Q] y, float[N, 4, P, Q] z)
    <float[10, 3, 1, 1] w, float[10] b, float[4, 10, 1, 1] v, float[4, 10, 1, 1] v2>
    { w2 = Identity (w) b2 = Identity (b)
      a = Conv (x, w, b) r = Relu (a) y = Conv (r, v)
      h = Neg (x) e = Conv (h, w2, b2) s = Sigmoid (e) z = Conv (s, v2) }""",
    "a e",
)
case(
    "conv_bias_shared_by_two",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] t)
    <float[10, 3, 1, 1] w, float[10] b, float[10, 3, 1, 1] k, float[4, 10, 1, 1] v, float[4, 10, 1, 1] q, float[4] c>
    { a = Conv (x, w, b)
      e = Conv (x, k, b)
      y = Conv (a, v, c)
      t = Conv (e, q, c) }""",
    "a e",
)
case(
    "conv_consumer_shared_by_two",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] t)
    <float[10, 3, 1, 1] w, float[10] b, float[10, 3, 1, 1] k, float[4, 10, 1, 1] v>
    { a = Conv (x, w, b)
      e = Conv (x, k)
      r = Relu (e)
      y = Conv (a, v)
      t = Conv (r, v) }""",
    "a e",
)
case(
    "conv_weight_used_again_on_its_own_output",
    conv(
        "r = Relu (a) s = Conv <pads = [1, 1, 1, 1]> (r, k, e) q = Relu (s) u = Conv <pads = [1, 1, 1, 1]> (q, k, e)",
        "float[10, 10, 3, 3] k, float[10] e",
    ),
    "a s u",
)
case(
    "conv_two_readers",
    conv(
        "r = Relu (a) t = Conv (r, k, d) u = Conv (r, q)",
        "float[5, 10, 3, 3] k, float[5] d, float[10, 10, 3, 3] q",
        out="float[N, 4, P, Q] y, float[N, 5, R, S] t",
    ),
    "a u",
)
case(
    "conv_transpose",
    """g (float[N, 3, 6, 5] x) => (float[N, 4, P, Q] y)
    <float[8, 3, 3, 3] w, float[8] b, float[8, 7, 3, 2] k, float[7] d, float[4, 7, 3, 3] v>
    { a = Conv (x, w, b)
      r = Relu (a)
      t = ConvTranspose <strides = [2, 3], pads = [1, 0, 0, 1], output_padding = [1, 0]> (r, k, d)
      y = Conv (t, v) }""",
    "a t",
)
case(
    "conv_transpose_1d_dilated_into_output",
    """g (float[N, 3, 9] x) => (float[N, 2, P] y) <float[8, 3, 3] w, float[8] b, float[8, 2, 3] v, float[2] c>
    { a = Conv (x, w, b)
      y = ConvTranspose <dilations = [2], strides = [2], output_shape = [18]> (a, v, c) }""",
)
case(
    "conv_transpose_grouped",
    conv("u = ConvTranspose <group = 2> (a, k)", "float[10, 5, 2, 2] k"),
    "a",
    r"output of a grouped ConvTranspose \(2 groups\)",
)

# -- Gemm and MatMul --------------------------------------------------------------------------------------------------

case("gemm", dense("u = Relu (a)"))
case(
    "gemm_trans_b_alpha_beta",
    """g (float[N, 6] x) => (float[N, 4] y) <float[10, 6] w, float[10] b, float[4, 10] v, float[4] c>
    { a = Gemm <transB = 1, alpha = 0.7, beta = 1.5> (x, w, b)
      u = Relu (a)
      y = Gemm <transB = 1, alpha = -0.5, beta = 0.25> (u, v, c) }""",
)
case(
    "gemm_trans_a",
    """g (float[N, 6] x) => (float[N, 4] y) <float[6, 10] w, float[10] b, float[10, 4] v, float[4] c>
    { a = Gemm (x, w, b)
      t = Transpose <perm = [1, 0]> (a)
      y = Gemm <transA = 1, alpha = 2.0> (t, v, c) }""",
)
case(
    "gemm_trans_a_and_b",
    """g (float[N, 6] x) => (float[N, 4] y) <float[6, 10] w, float[10] b, float[4, 10] v>
    { a = Gemm (x, w, b)
      r = Tanh (a)
      t = Transpose (r)
      y = Gemm <transA = 1, transB = 1> (t, v) }""",
)
case("gemm_without_c", dense("u = Relu (a)", last="y = Gemm (u, v)"))
case("gemm_beta_0", dense("u = Relu (a)", last="y = Gemm <beta = 0.0> (u, v, c)"))
case(
    "gemm_beta_0_on_both", dense("u = Relu (a)", last="y = Gemm <beta = 0.0> (u, v, c)").replace("(x", "<beta=0.0> (x")
)
case("gemm_c_scalar", dense("e = Relu (a) u = Gemm (e, k, s)", "float[10, 10] k, float s = {0.5}"), "a u")
case("gemm_c_of_one", dense("e = Relu (a) u = Gemm (e, k, s)", "float[10, 10] k, float[1] s = {0.5}"), "a u")
case("gemm_c_of_one_by_one", dense("e = Relu (a) u = Gemm (e, k, s)", "float[10, 10] k, float[1, 1] s = {0.5}"), "a u")
case("gemm_c_row", dense("e = Relu (a) u = Gemm <beta = 2.0> (e, k, s)", "float[10, 10] k, float[1, 10] s"), "a u")
case(
    "gemm_c_row_at_the_consumer",
    dense("u = Relu (a)", "float[1, 4] s", last="y = Gemm (u, v, s)"),
)
case(
    "gemm_c_column",
    """g (float[5, 6] x) => (float[5, 4] y) <float[6, 10] w, float[5, 1] b, float[10, 4] v, float[5, 1] c>
    { a = Gemm (x, w, b)
      u = Relu (a)
      y = Gemm <beta = 0.5> (u, v, c) }""",
    sizes=({},),
)
case(
    "gemm_c_column_as_long_as_the_row",
    """g (float[8, 6] x) => (float[8, 4] y) <float[6, 8] w, float[8, 1] b, float[8, 4] v>
    { a = Gemm (x, w, b)
      u = Relu (a)
      y = Gemm (u, v) }""",
    sizes=({},),
)
case(
    "gemm_c_matrix",
    """g (float[5, 6] x) => (float[5, 4] y) <float[6, 10] w, float[5, 10] b, float[10, 4] v, float[5, 4] c>
    { a = Gemm (x, w, b)
      u = Sigmoid (a)
      y = Gemm (u, v, c) }""",
    sizes=({},),
)
case("gemm_double", dense("u = Relu (a)").replace("float[", "double["))
case(
    "gemm_weight_is_an_input",
    dense("u = Relu (a)")
    .replace("float[N, 6] x", "float[N, 6] x, float[10, 4] v")
    .replace("float[10, 4] v, float[4] c>", "float[4] c>"),
    "",
    "the weight or the bias is not a constant",
)
case(
    "gemm_tied_autoencoder",
    """g (float[N, 6] x) => (float[N, 6] y) <float[10, 6] w, float[10] b, float[6] c>
    { a = Gemm <transB = 1> (x, w, b)
      u = Relu (a)
      y = Gemm (u, w, c) }""",
)
case(
    "gemm_labels_on_the_batch_axis",
    """g (float[5, 6] x) => (float[10, 4] y) <float[6, 10] w, float[10] b, float[5, 4] v>
    { a = Gemm (x, w, b)
      t = Transpose (a)
      y = Gemm (t, v) }""",
    "",
    "graph output",
    sizes=({},),
)
case("matmul", dense("u = Relu (a)", last="y = MatMul (u, v)").replace("Gemm (x, w, b)", "MatMul (x, w)"))
case(
    "matmul_with_bias_adds",
    """g (float[N, 7, 6] x) => (float[N, 7, 4] y) <float[6, 10] w, float[10] b, float[10, 4] v, float[4] c>
    { a = MatMul (x, w)
      e = Add (b, a)
      u = Relu (e)
      f = MatMul (u, v)
      y = Add (f, c) }""",
)
case(
    "matmul_bias_by_position",
    """g (float[N, 7, 6] x) => (float[N, 7, 4] y) <float[6, 10] w, float[1, 7, 10] b, float[10, 4] v, float[7, 1] c>
    { a = MatMul (x, w)
      e = Add (a, b)
      u = Relu (e)
      f = MatMul (u, v)
      y = Add (f, c) }""",
)
case(
    "matmul_bias_along_another_axis_of_equal_length",
    """g (float[N, 8, 6] x) => (float[N, 8, 4] y) <float[6, 8] w, float[8, 1] b, float[8, 4] v>
    { a = MatMul (x, w)
      e = Add (a, b)
      u = Relu (e)
      y = MatMul (u, v) }""",
)
case(
    "matmul_scalar_bias",
    dense("u = Relu (a)", "float s = {0.3}", last="f = MatMul (u, v) y = Add (f, s)"),
)
case(
    "matmul_constant_on_the_left",
    """g (float[6, N] x) => (float[4, N] y) <float[10, 6] w, float[10, 1] b, float[4, 10] v>
    { a = MatMul (w, x)
      e = Add (a, b)
      u = Relu (e)
      y = MatMul (v, u) }""",
)
case(
    "matmul_on_both_sides",
    """g (float[6, 7] x) => (float[3, 4] y) <float[10, 6] w, float[7, 9] k, float[3, 10] q, float[9, 4] v>
    { a = MatMul (w, x)
      e = MatMul (a, k)
      r = Relu (e)
      f = MatMul (q, r)
      y = MatMul (f, v) }""",
    "a e",
    sizes=({},),
)
case(
    "matmul_reads_both_axes",
    """g (float[6, 7] x) => (float[3, 9] y, float[10, 4] t)
    <float[10, 6] w, float[7, 9] k, float[3, 10] q, float[9, 4] v>
    { a = MatMul (w, x)
      e = MatMul (a, k)
      r = Relu (e)
      y = MatMul (q, r)
      t = MatMul (r, v) }""",
    "",
    "graph output",
    sizes=({},),
)
case(
    "matmul_reads_both_axes_of_inner_channels",
    """g (float[6, 7] x) => (float[3, 1] y, float[1, 4] t)
    <float[10, 6] w, float[7, 9] k, float[3, 10] q, float[9, 4] v, float[9, 1] p, float[1, 10] o>
    { a = MatMul (w, x)
      e = MatMul (a, k)
      r = Relu (e)
      f = MatMul (q, r)
      y = MatMul (f, p)
      h = MatMul (r, v)
      t = MatMul (o, h) }""",
    "a e",
    sizes=({},),
)
case(
    "matmul_of_two_activations",
    """g (float[N, 5, 6] x) => (float[N, 5, 5] y) <float[6, 10] w, float[6, 10] k>
    { a = MatMul (x, w)
      e = MatMul (x, k)
      t = Transpose <perm = [0, 2, 1]> (e)
      y = MatMul (a, t) }""",
    "a e",
)
case(
    "matmul_batched_constant",
    """g (float[5, 7, 6] x) => (float[5, 7, 4] y) <float[6, 10] w, float[5, 10, 4] v>
    { a = MatMul (x, w)
      y = MatMul (a, v) }""",
    "a",
    "meets an axis without channels",
    sizes=({},),
)
case(
    "matmul_over_an_axis_beside_channels",
    """g (float[N, 3, 20] x) => (float[N, 4, 5] y) <float[9, 3, 1] w, float[20, 6] k, float[6, 5] q, float[4, 9, 1] v>
    { a = Conv (x, w)
      e = MatMul (a, k)
      f = MatMul (e, q)
      y = Conv (f, v) }""",
    "a e",
)

# -- element-wise -----------------------------------------------------------------------------------------------------

_UNARY = {
    "Relu": 17, "LeakyRelu": 17, "Abs": 17, "Neg": 17, "Sigmoid": 17, "Tanh": 17, "Exp": 17, "Erf": 17, "Elu": 17,
    "Selu": 17, "Celu": 17, "Softplus": 17, "Softsign": 17, "HardSigmoid": 17, "HardSwish": 17, "Mish": 18, "Gelu": 20,
    "Swish": 24, "ThresholdedRelu": 17, "Sign": 17, "Floor": 17, "Ceil": 17, "Round": 17, "Sin": 17, "Cos": 17,
    "Atan": 17, "Sinh": 17, "Cosh": 17, "Asinh": 17, "Shrink": 17,
}  # fmt: skip
for _op, _opset in _UNARY.items():
    case(_op.lower(), conv(f"u = {_op} (a)"), opset=_opset)
for _op in ("Log", "Sqrt", "Reciprocal", "Tan", "Asin", "Acos", "Atanh"):  # defined on (0, 1)
    case(_op.lower(), conv(f"s = Sigmoid (a) u = {_op} (s)"))
case("acosh", conv("s = Sigmoid (a) t = Add (s, one) u = Acosh (t)", "float one = {1}"))
case("gelu_tanh", dense('u = Gelu <approximate = "tanh"> (a)'), opset=20)
case("leaky_relu_negative_slope", dense("u = LeakyRelu <alpha = -0.5> (a)"))
case("round_of_larger_values", conv("m = Mul (a, k) u = Round (m)", "float k = {8}"))
case("isnan", conv("l = Log (a) n = IsNaN (l) u = Cast <to = 1> (n)"))
case("isinf", conv("r = Relu (a) i = Reciprocal (r) n = IsInf (i) u = Cast <to = 1> (n)"))
case("not", conv("p = Greater (a, s) n = Not (p) u = Cast <to = 1> (n)", "float s = {0.1}"))
case("relu6_as_clip", conv("u = Clip (a, lo, hi)", "float lo = {0}, float hi = {0.5}"))
case("clip_lower_only", dense("u = Clip (a, lo)", "float lo = {-0.1}"))
case("clip_upper_only", dense("u = Clip (a, , hi)", "float hi = {0.1}"))
case("clip_6_attributes", conv("u = Clip <min = -0.2, max = 0.4> (a)"), opset=10)
case(
    "clip_bound_is_an_input",
    conv("u = Clip (a, , hi)").replace("8] x)", "8] x, float hi)"),
)
case(
    "identity_beside_outputs",
    dense("u = Relu (a)", last="y = Gemm (u, v, c) t = Identity (y)", out="float[N, 4] y, float[N, 4] t"),
)
case("identity", dense("i = Identity (a) u = Relu (i)"))
case("dropout_10", conv("u = Dropout <ratio = 0.3> (a)"), opset=10)
case("dropout_13", conv("u = Dropout (a, r)", "float r = {0.3}"))
case(
    "dropout_mask_used", conv("d, m = Dropout (a) n = Cast <to = 1> (m) u = Add (d, n)"), "", "second output of Dropout"
)
case("cast_to_double_and_back", dense("d = Cast <to = 11> (a) e = Abs (d) u = Cast <to = 1> (e)"))
case("cast_to_integers", conv("m = Mul (a, k) d = Cast <to = 6> (m) u = Cast <to = 1> (d)", "float k = {5}"))

case("prelu_shared_slope", conv("u = PRelu (a, s)", "float[1] s = {0.25}"))
case("prelu_slope_per_channel", conv("u = PRelu (a, s)", "float[10, 1, 1] s"))
case("prelu_slope_per_channel_dense", dense("u = PRelu (a, s)", "float[10] s"))
case("prelu_slope_per_channel_and_place", conv("u = PRelu (a, s)", "float[10, 8, 8] s"))
case(
    "prelu_slope_shared_by_two",
    dense("r = PRelu (a, s) e = Gemm (r, k) u = PRelu (e, s)", "float[10] s, float[10, 10] k"),
    "a e",
)
case("prelu_slope_is_computed", dense("e = Gemm (x, k) u = PRelu (a, e)", "float[6, 10] k"), "a e")

for _op in ("Add", "Sub", "Mul", "Div"):
    _k = "float[10, 1, 1] pos"
    case(f"{_op.lower()}_constant", conv(f"u = {_op} (a, pos)", _k))
    case(f"{_op.lower()}_constant_behind_relu", conv(f"r = Relu (a) u = {_op} (r, pos)", _k))
    case(f"{_op.lower()}_constant_first", conv(f"s = Exp (a) u = {_op} (pos, s)", _k))
    case(f"{_op.lower()}_scalar", conv(f"r = Relu (a) u = {_op} (r, pos)", "float pos = {0.7}"))
    case(f"{_op.lower()}_scalar_first", conv(f"s = Exp (a) u = {_op} (pos, s)", "float pos = {0.7}"))
    case(
        f"{_op.lower()}_of_two",
        conv(
            f"e = Conv (x, k, d) s = Exp (e) p = Relu (a) u = {_op} (p, s)", "float[10, 3, 3, 3] k, float[10] d"
        ).replace("(x, k, d)", "<pads = [1, 1, 1, 1]> (x, k, d)"),
        "a e",
    )
    case(f"{_op.lower()}_of_itself", conv(f"e = Exp (a) u = {_op} (e, e)"))
    case(f"{_op.lower()}_per_place", conv(f"u = {_op} (a, pos)", "float[1, 8, 8] pos"))
    case(f"{_op.lower()}_per_channel_and_place", conv(f"r = Relu (a) u = {_op} (r, pos)", "float[10, 8, 8] pos"))
    case(
        f"{_op.lower()}_with_one_channel",
        conv(f"e = Conv <pads = [1, 1, 1, 1]> (x, k) s = Exp (e) u = {_op} (a, s)", "float[1, 3, 3, 3] k"),
    )
case(
    "add_input_of_equal_shape",
    conv("u = Add (a, x)").replace("float[N, 3,", "float[N, 10,").replace("float[10, 3, 3, 3]", "float[10, 10, 3, 3]"),
    "",
    "meets an axis without channels",
)
case("add_vector_of_lower_rank", dense("e = ReduceMean <axes = [0], keepdims = 0> (a) u = Add (a, e)"))
case("mul_zero_scale", dense("r = Relu (a) u = Mul (r, s)", "float[10] s = {0, 1, 2, 0, 0.5, 1, 0, 3, -1, 1}"))
case(
    "div_by_zero_scale",
    dense("u = Div (a, s)", "float[10] s = {1, 1, 2, 4, 0.5, 1, 0, 3, -1, 1}")
    .replace("float[10, 4] v", "float[10, 4] v = {" + ", ".join(["1"] * 24 + ["0"] * 4 + ["1"] * 12) + "}")
    .replace("y = Gemm (u, v, c)", "z = Clip (u, lo, hi) y = Gemm (z, v, c)")
    .replace("float[4] c", "float[4] c, float lo = {-9}, float hi = {9}"),
)
case(
    "add_outer_sum_of_two_axes",
    """g (float[N, 6] x) => (float[N, 4, 9] y)
    <float[6, 8] w, float[6, 9] k, float[4, 8, 1] v, int64[1] two = {2}, int64[1] one = {1}>
    { a = Gemm (x, w)
      e = Gemm (x, k)
      p = Unsqueeze (a, two)
      q = Unsqueeze (e, one)
      s = Add (p, q)
      y = Conv (s, v) }""",
    "a",
    "Conv mixes this axis",
)
case(
    "mul_outer_product_flattened",
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 5] w, float[6, 3] k, float[15, 4] v, int64[1] two = {2}, int64[1] one = {1}>
    { a = Gemm (x, w)
      e = Gemm (x, k)
      p = Unsqueeze (a, two)
      q = Unsqueeze (e, one)
      s = Mul (p, q)
      f = Flatten (s)
      y = Gemm (f, v) }""",
    "",
    "several factors",
)
case(
    "residual_adds",
    """g (float[N, 3, 8, 8] x) => (float[N, 4] y)
    <float[9, 3, 3, 3] w, float[9] b, float[7, 9, 3, 3] k1, float[7] d1, float[9, 7, 3, 3] k2, float[9] d2,
     float[5, 9, 3, 3] k3, float[9, 5, 3, 3] k4, float[9, 4] v, float[4] c>
    { p = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      r0 = Relu (p)
      e1 = Conv <pads = [1, 1, 1, 1]> (r0, k1, d1)
      q1 = Relu (e1)
      f1 = Conv <pads = [1, 1, 1, 1]> (q1, k2, d2)
      s1 = Add (f1, r0)
      r1 = Relu (s1)
      e2 = Conv <pads = [1, 1, 1, 1]> (r1, k3)
      q2 = Relu (e2)
      f2 = Conv <pads = [1, 1, 1, 1]> (q2, k4)
      s2 = Add (r1, f2)
      r2 = Relu (s2)
      g = GlobalAveragePool (r2)
      h = Flatten (g)
      y = Gemm (h, v, c) }""",
    "p e1 f1 e2 f2",
)
case(
    "residual_to_the_input",
    """g (float[N, 6, 8, 8] x) => (float[N, 4, 8, 8] y)
    <float[7, 6, 3, 3] w, float[7] b, float[6, 7, 3, 3] k, float[4, 6, 1, 1] v>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      r = Relu (a)
      e = Conv <pads = [1, 1, 1, 1]> (r, k)
      s = Add (x, e)
      y = Conv (s, v) }""",
    "a",
    "meets an axis without channels",
)
case(
    "squeeze_excite",
    conv(
        """g1 = GlobalAveragePool (a)
        e = Conv (g1, k1, d1)
        q = Relu (e)
        f = Conv (q, k2, d2)
        h = Sigmoid (f)
        u = Mul (h, a)""",
        "float[6, 10, 1, 1] k1, float[6] d1, float[10, 6, 1, 1] k2, float[10] d2",
    ),
    "a e f",
)
case("sum_of_three", dense("e = Gemm (x, k) r = Relu (e) u = Sum (a, r, a)", "float[6, 10] k"), "a e")
case("sum_with_a_constant", dense("u = Sum (a, k)", "float[10] k"))
case("mean_of_two", dense("e = Gemm (x, k) u = Mean (a, e)", "float[6, 10] k"), "a e")
case("mean_with_a_scalar", dense("u = Mean (a, k)", "float k = {0.5}"))
case("max_of_two", dense("e = Gemm (x, k, b) u = Max (a, e)", "float[6, 10] k"), "a e")
case("max_with_a_vector", dense("u = Max (a, k)", "float[10] k"))
case("max_with_a_scalar", dense("u = Max (k, a)", "float k = {0.1}"))
case("min_of_two", dense("e = Gemm (x, k) r = Relu (e) u = Min (a, r)", "float[6, 10] k"), "a e")
case("min_with_one_operand", dense("u = Min (a)"))

case("pow_scalar_exponent", dense("u = Pow (a, k)", "float k = {2}"))
case("pow_exponent_per_channel", dense("s = Sigmoid (a) u = Pow (s, pos)", "float[10] pos"))
case("pow_scalar_base", dense("u = Pow (k, a)", "float k = {2}"))
case(
    "mod",
    dense("u = Mod <fmod = 1> (a, k)", "float[10] pos = {1, 2, 1, 0.5, 0.5, 0.7, 1, 1, 1, 1}").replace("k)", "pos)"),
)
case(
    "where_by_sign",
    dense("p = Greater (a, z) e = Gemm (x, k) u = Where (p, a, e)", "float z = {0}, float[6, 10] k"),
    "a e",
)
case(
    "where_constant_mask",
    dense("u = Where (m, a, z)", "float z = {0}, bool[10] m = {1, 0, 1, 1, 0, 1, 1, 0, 1, 1}"),
    "",
    "meets an axis without channels",
)
case("where_scalar_condition", dense("u = Where (m, a, k)", "float[10] k").replace("6] x)", "6] x, bool m)"))
for _op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
    _scaled = "m = Mul (a, eight) i = Floor (m)"
    case(
        f"{_op.lower()}_per_channel",
        dense(
            f"{_scaled} p = {_op} (i, t) u = Cast <to = 1> (p)",
            "float eight = {3}, float[10] t = {0, 1, 0, -1, 0, 1, 2, 0, 0, 1}",
        ),
    )
    case(
        f"{_op.lower()}_scalar",
        dense(f"{_scaled} p = {_op} (i, t) u = Cast <to = 1> (p)", "float eight = {3}, float t = {0}"),
    )
for _op in ("And", "Or", "Xor"):
    case(
        f"{_op.lower()}",
        dense(
            f"e = Gemm (x, k) p = Greater (a, z) q = Less (e, z) s = {_op} (p, q) u = Cast <to = 1> (s)",
            "float[6, 10] k, float z = {0.1}",
        ),
        "a e",
    )

# -- normalisation ----------------------------------------------------------------------------------------------------

_BN = "float[10] ga, float[10] be, float[10] me, float[10] var"
case(
    "batchnorm_folds",
    conv("n = BatchNormalization (a, ga, be, me, var) u = Relu (n)", _BN),
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_folds_without_bias",
    conv("n = BatchNormalization <epsilon = 0.01> (a, ga, be, me, var) u = Relu (n)", _BN).replace(
        "(x, w, b)", "(x, w)"
    ),
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_9",
    conv("n = BatchNormalization (a, ga, be, me, var) u = Relu (n)", _BN),
    opset=9,
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_folds_into_gemm_alpha_beta",
    dense("n = BatchNormalization (a, ga, be, me, var) u = Relu (n)", _BN).replace(
        "Gemm (x", "Gemm <alpha = 0.5, beta = 2.0> (x"
    ),
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_folds_into_gemm_with_scalar_c",
    dense("n = BatchNormalization (a, ga, be, me, var) u = Relu (n)", _BN).replace("float[10] b,", "float b = {0.3},"),
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_folds_into_matmul",
    dense("n = BatchNormalization (a, ga, be, me, var) u = Relu (n)", _BN).replace("Gemm (x, w, b)", "MatMul (x, w)"),
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_folds_into_matmul_add",
    dense("e = Add (a, b) n = BatchNormalization (e, ga, be, me, var) u = Relu (n)", _BN).replace(
        "Gemm (x, w, b)", "MatMul (x, w)"
    ),
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_folds_into_conv_transpose",
    conv(
        "t = ConvTranspose (a, k) n = BatchNormalization (t, ga, be, me, var) u = Relu (n)",
        "float[10, 10, 2, 2] k, " + _BN,
    ),
    "a t",
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_folds_into_a_shared_weight",
    """g (float[N, 3, 8, 8] x, float[N, 3, 8, 8] z) => (float[N, 4, 8, 8] y)
    <float[9, 3, 1, 1] w, float[9] b, float[9] ga, float[9] be, float[9] me, float[9] var, float[9] gb, float[9] bb,
     float[9] mb, float[9] varb, float[4, 9, 1, 1] v>
    { a = Conv (x, w, b)
      e = Conv (z, w, b)
      n = BatchNormalization (a, ga, be, me, var)
      o = BatchNormalization (e, gb, bb, mb, varb)
      r = Relu (o)
      s = Add (n, r)
      y = Conv (s, v) }""",
    "a e",
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_behind_two_readers",
    conv(
        "n = BatchNormalization (a, ga, be, me, var) r = Relu (n) u = Conv (r, q) t = Conv (a, k)",
        _BN + ", float[10, 10, 3, 3] q, float[5, 10, 3, 3] k",
        out="float[N, 4, P, Q] y, float[N, 5, R, S] t",
    ),
    "a u",
    left={"BatchNormalization": 1},
)
case(
    "batchnorm_behind_concat",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    <float[6, 3, 1, 1] w, float[6] b, float[5, 3, 1, 1] k, float[11] ga, float[11] be, float[11] me, float[11] var,
     float[4, 11, 1, 1] v>
    { a = Conv (x, w, b)
      e = Conv (x, k)
      j = Concat <axis = 1> (a, e)
      n = BatchNormalization (j, ga, be, me, var)
      r = Relu (n)
      y = Conv (r, v) }""",
    "a e",
    left={"BatchNormalization": 1},
)
case(
    "batchnorm_behind_relu",
    conv("r = Relu (a) u = BatchNormalization (r, ga, be, me, var)", _BN),
    left={"BatchNormalization": 1},
)
case(
    "batchnorm_on_another_axis_of_matmul",
    """g (float[N, 5, 6] x) => (float[N, 5, 4] y)
    <float[6, 10] w, float[5] ga, float[5] be, float[5] me, float[5] var, float[10, 4] v>
    { a = MatMul (x, w)
      n = BatchNormalization (a, ga, be, me, var)
      y = MatMul (n, v) }""",
    "",
    "BatchNormalization mixes this axis",
    left={"BatchNormalization": 1},
)
case(
    "batchnorm_on_the_input",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    <float[3] ga, float[3] be, float[3] me, float[3] var, float[9, 3, 1, 1] w, float[4, 9, 1, 1] v>
    { n = BatchNormalization (x, ga, be, me, var)
      a = Conv (n, w)
      y = Conv (a, v) }""",
    refused="meets an axis without channels",
    left={"BatchNormalization": 1},
)
case(
    "batchnorm_before_the_last_layer",
    conv("r = Relu (a) n = Conv (r, k) u = BatchNormalization (n, ga, be, me, var)", _BN + ", float[10, 10, 1, 1] k"),
    "a n",
    left={"BatchNormalization": 0},
)
case(
    "batchnorm_is_the_output",
    conv(
        "u = Relu (a)",
        "float[4] ga, float[4] be, float[4] me, float[4] var",
        last="z = Conv (u, v, c) y = BatchNormalization (z, ga, be, me, var)",
    ),
    left={"BatchNormalization": 0},
)

for _op in ("Softmax", "LogSoftmax", "Hardmax"):
    case(f"{_op.lower()}_over_channels", conv(f"u = {_op} <axis = 1> (a)"), "", f"{_op} normalises along this axis")
    case(f"{_op.lower()}_over_space", conv(f"u = {_op} <axis = -1> (a)"))
    case(f"{_op.lower()}_default_axis", dense(f"u = {_op} (a)"), "", f"{_op} normalises along this axis")
    case(f"{_op.lower()}_11_over_what_follows", conv(f"u = {_op} <axis = 2> (a)"), opset=11)
    case(f"{_op.lower()}_11_default_axis", conv(f"u = {_op} (a)"), "", f"{_op} normalises", opset=11)
    case(
        f"{_op.lower()}_11_coerces_to_two_axes",
        """g (float[N, 5, 6] x) => (float[N, 5, 4] y) <float[6, 10] w, float[10, 4] v>
        { a = MatMul (x, w)
          s = OP <axis = 1> (a)
          y = MatMul (s, v) }""".replace("OP", _op),
        "",
        f"{_op} normalises",
        opset=11,
    )
case("softmax_at_the_end", dense("u = Relu (a)", last="z = Gemm (u, v, c) y = Softmax <axis = -1> (z)"))

# -- pools and reductions ---------------------------------------------------------------------------------------------

case("max_pool", conv("r = Relu (a) u = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)"))
case(
    "max_pool_pads_dilations", conv("u = MaxPool <kernel_shape = [2, 3], dilations = [2, 1], pads = [1, 0, 0, 1]> (a)")
)
case("max_pool_ceil", conv("u = MaxPool <kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1> (a)"))
case(
    "max_pool_indices_used",
    conv("p, i = MaxPool <kernel_shape = [2, 2]> (a) f = Cast <to = 1> (i) u = Add (p, f)"),
    "",
    "the indices of MaxPool are used",
)
case("average_pool", conv("u = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 0, 0], count_include_pad = 1> (a)"))
case("average_pool_without_pads", conv("r = Relu (a) u = AveragePool <kernel_shape = [2, 2], pads = [1, 0, 0, 1]> (r)"))
case(
    "average_pool_1d",
    """g (float[N, 3, 12] x) => (float[N, 4, P] y) <float[8, 3, 3] w, float[8] b, float[4, 8, 1] v>
    { a = Conv (x, w, b)
      u = AveragePool <kernel_shape = [4], strides = [2]> (a)
      y = Conv (u, v) }""",
)
case("lp_pool", conv("u = LpPool <kernel_shape = [2, 2], p = 2> (a)"))
case("lp_pool_1", conv("u = LpPool <kernel_shape = [2, 2], p = 1, strides = [2, 1]> (a)"))
for _op in ("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool"):
    case(_op.lower(), conv(f"u = {_op} (a)"))
    case(
        f"{_op.lower()}_flattened",
        dense(f"f = {_op} (e) u = Flatten (f)")
        .replace("float[N, 6] x", "float[N, 6, 4, 3] x")
        .replace("float[6, 10] w", "float[10, 6, 1, 1] w")
        .replace("a = Gemm (x, w, b)", "a = Conv (x, w, b) e = Relu (a)"),
    )

_REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
for _op in _REDUCTIONS:
    _name, _sum = _op.lower(), _op == "ReduceSum"  # ReduceSum has its axes as an input since 13, the others since 18
    _space = f"u = {_op} (s, ax)" if _sum else f"u = {_op} <axes = [2, -1]> (s)"
    _ax = "int64[2] ax = {2, -1}"
    case(f"{_name}_over_space", conv("s = Sigmoid (a) " + _space, _ax if _sum else ""))
    case(f"{_name}_18_over_space", conv(f"s = Sigmoid (a) u = {_op} (s, ax)", _ax), opset=18)
    case(
        f"{_name}_18_over_channels",
        conv(f"s = Sigmoid (a) u = {_op} (s, ax)", "int64[1] ax = {1}").replace(
            "float[4, 10, 1, 1] v", "float[4, 1, 1, 1] v"
        ),
        "",
        f"{_op} works along this axis",
        opset=18,
    )
case(
    "reduce_mean_drops_axes",
    conv(
        "m = ReduceMean <axes = [2, 3], keepdims = 0> (a)",
        "float[10, 4] q",
        last="y = Gemm (m, q, c)",
        out="float[N, 4] y",
    ),
)
case(
    "reduce_max_drops_an_axis_before_channels",
    """g (float[N, 5, 6] x) => (float[N, 4] y) <float[6, 10] w, float[10, 4] v>
    { a = MatMul (x, w)
      m = ReduceMax <axes = [1], keepdims = 0> (a)
      y = MatMul (m, v) }""",
)
case("reduce_sum_11", conv("u = ReduceSum <axes = [2, 3]> (a)"), opset=11)
case(
    "reduce_mean_over_all",
    dense("m = ReduceMean <keepdims = 1> (a) u = Mul (x, m)").replace("float[10, 4] v", "float[6, 4] v"),
    "",
    "ReduceMean works along this axis",
)
case("reduce_sum_of_nothing", dense("u = ReduceSum <noop_with_empty_axes = 1> (a)"))
case(
    "reduce_sum_axes_are_an_input",
    conv("u = Relu (a) t = ReduceSum (a, ax)", out="float[N, 4, P, Q] y, float[R, S, T, U] t").replace(
        "8] x)", "8] x, int64[1] ax)"
    ),
    "",
    ("its axes are not constant", "graph output"),
)
case("arg_max_over_space", conv("i = ArgMax <axis = 2> (a) u = Cast <to = 1> (i)"))
case(
    "arg_max_over_channels",
    conv("i = ArgMax <axis = 1> (a) u = Cast <to = 1> (i)").replace("float[4, 10, 1, 1] v", "float[4, 1, 1, 1] v"),
    "",
    "ArgMax works along this axis",
)
case(
    "arg_min_drops_an_axis",
    conv(
        "i = ArgMin <axis = 3, keepdims = 0> (a) f = Cast <to = 1> (i) u = Unsqueeze (f, three)", "int64[1] three = {3}"
    ),
)
case("cum_sum_over_space", conv("u = CumSum <reverse = 1> (a, k)", "int64 k = {-1}"))
case("cum_sum_over_channels", conv("u = CumSum (a, k)", "int64 k = {1}"), "", "CumSum works along this axis")

# -- Reshape and its like ---------------------------------------------------------------------------------------------

_FLAT = "float[640, 4] f"
_LAST = {"last": "y = Gemm (t, f, c)", "out": "float[N, 4] y"}
case("flatten_behind_conv", conv("r = Relu (a) t = Flatten (r)", _FLAT, **_LAST))
case("flatten_negative_axis", conv("t = Flatten <axis = -3> (a)", _FLAT, **_LAST))
case(
    "flatten_channels_into_the_batch",
    """g (float[N, 3, 8] x) => (float[P, 4] y) <float[9, 3, 1] w, float[8, 4] v>
    { a = Conv (x, w)
      t = Flatten <axis = 2> (a)
      y = Gemm (t, v) }""",
    "",
    "graph output",
)
case(
    "flatten_channels_into_the_batch_and_back",
    """g (float[N, 3, 8] x) => (float[N, 4, 5] y)
    <float[9, 3, 1] w, float[8, 5] k, int64[3] s = {-1, 9, 5}, float[4, 9, 1] v>
    { a = Conv (x, w)
      t = Flatten <axis = 2> (a)
      m = MatMul (t, k)
      u = Reshape (m, s)
      y = Conv (u, v) }""",
)
case("flatten_9", conv("r = Relu (a) t = Flatten (r)", _FLAT, **_LAST), opset=9)
case("reshape_zero_and_minus_one", conv("t = Reshape (a, s)", _FLAT + ", int64[2] s = {0, -1}", **_LAST))
case("reshape_literal_count", conv("t = Reshape (a, s)", _FLAT + ", int64[2] s = {-1, 640}", **_LAST))
case(
    "reshape_zeros_keep_channels",
    conv("t = Reshape (a, s) u = Reshape (t, q)", "int64[3] s = {0, 0, -1}, int64[4] q = {0, 0, 4, 16}"),
)
case(
    "reshape_splits_space_with_literal_channels",
    conv("t = Reshape (a, s) u = Reshape (t, q)", "int64[3] s = {-1, 10, 64}, int64[4] q = {0, 10, 8, 8}"),
)
case(
    "reshape_to_groups_and_back",
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 12] w, float[12] b, int64[3] s = {-1, 3, 4}, int64[2] q = {-1, 12}, float[12, 4] v>
    { a = Gemm (x, w, b)
      t = Reshape (a, s)
      r = Relu (t)
      z = Reshape (r, q)
      y = Gemm (z, v) }""",
)
case(
    "reshape_channel_shuffle",
    """g (float[N, 3, 4, 5] x) => (float[N, 4, 4, 5] y)
    <float[12, 3, 1, 1] w, float[12] b, int64[5] s = {0, 2, 6, 4, 5}, int64[4] q = {0, -1, 4, 5}, float[4, 12, 1, 1] v>
    { a = Conv (x, w, b)
      t = Reshape (a, s)
      p = Transpose <perm = [0, 2, 1, 3, 4]> (t)
      z = Reshape (p, q)
      y = Conv (z, v) }""",
)
case(
    "reshape_awkward",  # rows of 6 cut into rows of 4: only every third boundary falls together
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 36] w, int64[3] s = {-1, 6, 6}, int64[3] q = {-1, 9, 4}, float[36, 4] v>
    { a = Gemm (x, w)
      t = Reshape (a, s)
      r = Reshape (t, q)
      z = Flatten (r)
      y = Gemm (z, v) }""",
)
case(
    "reshape_too_awkward",  # one class is left, of which nothing can go
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 36] w, int64[3] s = {-1, 4, 9}, int64[3] q = {-1, 9, 4}, float[36, 4] v>
    { a = Gemm (x, w)
      t = Reshape (a, s)
      r = Reshape (t, q)
      z = Flatten (r)
      y = Gemm (z, v) }""",
    "",
)
case(
    "reshape_rectangle_contracted",
    """g (float[N, 6] x) => (float[N, 15] y)
    <float[6, 12] w, int64[3] s = {-1, 3, 4}, float[4, 5] k, float[5] b, int64[2] q = {-1, 15}>
    { a = Gemm (x, w)
      t = Reshape (a, s)
      m = MatMul (t, k)
      p = Add (m, b)
      r = Relu (p)
      y = Reshape (r, q) }""",
    "a",
)
case(
    "reshape_where_batch_and_channels_mix",  # the longer axis of the rectangle is another one at another batch size
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 12] w, int64[2] s = {-1, 6}, int64[2] q = {-1, 12}, float[12, 4] v>
    { a = Gemm (x, w)
      t = Reshape (a, s)
      r = Relu (t)
      z = Reshape (r, q)
      y = Gemm (z, v) }""",
    "a",
)
case(
    "reshape_into_the_batch",
    """g (float[N, 6] x) => (float[P, 5] y) <float[6, 12] w, int64[2] s = {-1, 4}, float[4, 5] v>
    { a = Gemm (x, w)
      t = Reshape (a, s)
      y = Gemm (t, v) }""",
    "a",
)
case(
    "reshape_of_weight_and_bias",
    """g (float[N, 3, 8, 8] x) => (float[N, 4] y)
    <float[9, 3, 1, 1] w, float[9, 1, 1] b, float[9, 8, 8, 4] k, int64[2] s = {576, 4}, int64[2] q = {-1, 576}>
    { a = Conv (x, w)
      e = Add (a, b)
      v = Reshape (k, s)
      t = Reshape (e, q)
      y = MatMul (t, v) }""",
)
case(
    "reshape_target_depends_on_an_input",
    conv("o = Mul (s, z) q = Add (o, to) u = Reshape (a, q)", "int64 z = {0}, int64[4] to = {0, 10, 8, 8}").replace(
        "8] x)", "8] x, int64[4] s)"
    ),
    "",
    "the target shape of Reshape is not known",
)

# -- numbers of channels that the graph reads from shapes -------------------------------------------------------------


def dynamic(body: str, more: str = "", **parts: str) -> str:
    """As `conv`, with t = a whose number of channels shape inference cannot know, so that no Shape of it is folded."""
    head = "n = Shape <start = 0, end = 1> (x) st = Concat <axis = 0> (n, m1, w8, w8) t = Reshape (a, st)\n       "
    given = "int64[1] m1 = {-1}, int64[1] w8 = {8}, int64[1] i1 = {1}, int64[1] i0 = {0}, int64 one = {1}"
    return conv(head + body, given + (", " + more if more else ""), **parts)


case("shape_dynamic_channels", dynamic("u = Relu (t)"))
case(
    "shape_gather_concat_reshape",
    dynamic(
        "s = Shape (t) k = Gather (s, i1) q = Concat <axis = 0> (n, k, m1) r = Reshape (t, q) u = Unsqueeze (r, i3)",
        "int64[1] i3 = {3}",
    ),
)
case(
    "shape_slice_cast_squeeze_reshape",
    dynamic(
        """s = Shape (t)
        k = Slice (s, i1, i2)
        k32 = Cast <to = 6> (k)
        k0 = Squeeze (k32, i0)
        k64 = Cast <to = 7> (k0)
        k1 = Unsqueeze (k64, i0)
        q = Concat <axis = 0> (n, k1, m1)
        r = Reshape (t, q)
        u = Unsqueeze (r, i3)""",
        "int64[1] i2 = {2}, int64[1] i3 = {3}",
    ),
)
case(
    "shape_of_a_tied_tensor",
    dynamic(
        """r = Relu (t)
        s = Shape (r)
        k = Gather (s, i1)
        q = Concat <axis = 0> (n, k, w8, w8)
        z = Reshape (a, q)
        u = Add (z, r)"""
    ),
)
case(
    "shape_of_channels_that_are_not_tied",
    dynamic(
        "e = Conv (x, k3) s = Shape (t) k = Gather (s, i1) q = Concat <axis = 0> (n, k, w8, w8) u = Reshape (e, q)",
        "float[10, 3, 1, 1] k3",
        last="y = Conv (u, v, c) z = Conv (t, v4)",
        out="float[N, 4, P, Q] y, float[N, 4, R, S] z",
    ).replace("float[10] b", "float[10] b, float[4, 10, 1, 1] v4"),
    "",
    "the target shape of Reshape cannot be rewritten",
)
case(
    "shape_leaks_into_data",
    dynamic("s = Shape (t) k = Gather (s, one) f = Cast <to = 1> (k) q = Sqrt (f) u = Div (t, q)"),
    "",
    "its number of channels is computed with",
)
case(
    "shape_leaks_into_integer_arithmetic",
    dynamic(
        "s = Shape (t) k = Gather (s, i1) h = Sub (k, five) q = Concat <axis = 0> (n, two, h, w8, w8) "
        "r = Reshape (t, q) z = Reshape (r, q2) u = Relu (z)",
        "int64[1] two = {2}, int64[1] five = {5}, int64[4] q2 = {0, 10, 8, 8}",
    ),
    "",
    "its number of channels is computed with",
)
case(
    "shape_divided_into_groups",
    dynamic(
        "s = Shape (t) k = Gather (s, i1) h = Div (k, two) q = Concat <axis = 0> (n, two, h, w8, w8) "
        "r = Reshape (t, q) z = Reshape (r, q2) u = Relu (z)",
        "int64[1] two = {2}, int64[4] q2 = {0, 10, 8, 8}",
    ),
)
case(
    "shape_divided_into_heads",  # the number of heads divides, and the width of a head stays
    dynamic(
        "s = Shape (t) k = Gather (s, i1) h = Div (k, five) q = Concat <axis = 0> (n, minus, h, w8, w8) "
        "r = Reshape (t, q) o = Softmax <axis = 2> (r) z = Reshape (o, q2) u = Relu (z)",
        "int64[1] minus = {-1}, int64[1] five = {5}, int64[4] q2 = {0, 10, 8, 8}",
    ),
)
case(
    "shape_of_channels_times_positions",
    """g (float[N, 3, 4, 8] x) => (float[N, 4] y)
    <float[10, 3, 3, 3] w, float[10] b, float[320, 4] v, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2},
     int64[1] i3 = {3}>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      s = Shape (a)
      n = Gather (s, i0) k = Gather (s, i1) h = Gather (s, i2) l = Gather (s, i3)
      kh = Mul (k, h)
      khl = Mul (kh, l)
      q = Concat <axis = 0> (n, khl)
      f = Reshape (a, q)
      y = Gemm (f, v) }""",
)
case(
    "shape_batch_times_heads",  # as PyTorch's MultiheadAttention is exported: batch and heads on one axis
    """g (float[5, N, 12] x) => (float[5, N, 7] y)
    <float[12, 24] w, float[24] b, float[12, 24] w2, float[12, 24] w3, float[24, 7] v, int64[1] i1 = {1},
     int64[1] heads = {4}, int64[1] heads2 = {4}, int64[1] five = {5}, int64[1] width = {6}, int64[3] t4 = {-1, 5, 6},
     int64[4] t5 = {-1, 4, 5, 5}, int64[1] all = {24}>
    { q0 = MatMul (x, w) q1 = Add (q0, b) k0 = MatMul (x, w2) v0 = MatMul (x, w3)
      s = Shape (x) n = Gather (s, i1)
      nh = Mul (n, heads)
      t1 = Concat <axis = 0> (five, nh, width)
      t2 = Concat <axis = 0> (n, heads2, five, width)
      t3 = Concat <axis = 0> (five, n, all)
      q2 = Reshape (q1, t1) q3 = Transpose <perm = [1, 0, 2]> (q2) q4 = Reshape (q3, t2)
      k2 = Reshape (k0, t1) k3 = Transpose <perm = [1, 2, 0]> (k2)
      v2 = Reshape (v0, t1) v3 = Transpose <perm = [1, 0, 2]> (v2) v4 = Reshape (v3, t2)
      q5 = Reshape (q4, t4)
      p0 = MatMul (q5, k3)
      p1 = Softmax <axis = -1> (p0)
      p2 = Reshape (p1, t5)
      o0 = MatMul (p2, v4)
      o1 = Transpose <perm = [2, 0, 1, 3]> (o0)
      o2 = Reshape (o1, t3)
      y = MatMul (o2, v) }""",
    "q0 k0 v0",
)
case(
    "shape_is_an_output",
    dynamic("u = Relu (t) k = Shape (u)", out="float[N, 4, P, Q] y, int64[4] k"),
    "",
    "its number of channels is used outside",
)
case(
    "shape_gathered_is_an_output",
    dynamic("u = Relu (t) s = Shape (u) k = Gather (s, i1)", out="float[N, 4, P, Q] y, int64[1] k"),
    "",
    "its number of channels is used outside",
)
case(
    "shape_of_space_and_batch_is_an_output",
    dynamic(
        "u = Relu (t) s = Shape (u) k = Gather (s, i023)",
        "int64[3] i023 = {0, 2, 3}",
        out="float[N, 4, P, Q] y, int64[3] k",
    ),
)
case(
    "shape_used_inside_a_subgraph",
    dynamic(
        """s = Shape (t)
        k = Gather (s, i1)
        h = If (flag) <
          then_branch = yes () => (float[1] p) { p = Cast <to = 1> (k) },
          else_branch = no () => (float[1] q) { q = Constant <value = float[1] {1}> () }
        >
        u = Mul (t, h)""",
    ).replace("8] x)", "8] x, bool flag)"),
    "",
    "its number of channels is used outside",
)
case(
    "shape_bounds_a_slice_of_the_input",
    """g (float[N, 3, 8, 8] x, float[N, 20] z) => (float[N, 4, P, Q] y, float[N, S] t)
    <float[10, 3, 3, 3] w, float[4, 10, 1, 1] v, int64[1] m1 = {-1}, int64[1] w6 = {6}, int64[1] i1 = {1},
     int64[1] i0 = {0}>
    { a = Conv (x, w)
      n = Shape <start = 0, end = 1> (x)
      st = Concat <axis = 0> (n, m1, w6, w6)
      d = Reshape (a, st)
      s = Shape (d)
      k = Gather (s, i1)
      t = Slice (z, i0, k, i1)
      y = Conv (d, v) }""",
    "",
    "their number cuts another tensor",
)
case(
    "shape_pads_the_input",
    """g (float[N, 3, 8, 8] x, float[N, 20] z) => (float[N, 4, P, Q] y, float[N, S] t)
    <float[10, 3, 3, 3] w, float[4, 10, 1, 1] v, int64[1] m1 = {-1}, int64[1] w6 = {6}, int64[1] i1 = {1},
     int64[1] i0 = {0}>
    { a = Conv (x, w)
      n = Shape <start = 0, end = 1> (x)
      st = Concat <axis = 0> (n, m1, w6, w6)
      d = Reshape (a, st)
      s = Shape (d)
      k = Gather (s, i1)
      p = Concat <axis = 0> (i0, i0, i0, k)
      t = Pad (z, p)
      y = Conv (d, v) }""",
    "",
    "their number pads another tensor",
)
case(
    "shape_splits_the_input",
    """g (float[N, 3, 8, 8] x, float[N, 20] z) => (float[N, 4, P, Q] y, float[N, S] t, float[N, R] t2)
    <float[10, 3, 3, 3] w, float[4, 10, 1, 1] v, int64[1] m1 = {-1}, int64[1] w6 = {6}, int64[1] i1 = {1},
     int64[1] i0 = {0}>
    { a = Conv (x, w)
      n = Shape <start = 0, end = 1> (x)
      st = Concat <axis = 0> (n, m1, w6, w6)
      d = Reshape (a, st)
      s = Shape (d)
      k = Gather (s, i1)
      p = Concat <axis = 0> (k, k)
      t, t2 = Split <axis = 1> (z, p)
      y = Conv (d, v) }""",
    "",
    "their number splits another tensor",
)
case(
    "shape_slices_its_own_channels",
    dynamic("s = Shape (t) k = Gather (s, i1) u = Slice (t, i0, k, i1)"),
    "",
    "the bounds of Slice cannot be rewritten",
)
case(
    "shape_target_shared_by_two_reshapes",
    """g (float[N, 6] x) => (float[N, 4] y, float[N, 10, 1] z)
    <float[6, 10] w, float[6, 10] k, float[4, 10, 1] v, int64[1] ten = {10}, int64[1] one = {1}, int64[1] i2 = {2}>
    { a = Gemm (x, w)
      e = Gemm (x, k)
      n = Shape <start = 0, end = 1> (x)
      q = Concat <axis = 0> (n, ten, one)
      ra = Reshape (a, q)
      z = Reshape (e, q)
      c = Conv (ra, v)
      y = Squeeze (c, i2) }""",
    "a",
)
case(
    "shape_target_shared_with_an_expand",
    """g (float[N, 6] x, float[1, 10, 1] b) => (float[N, 4, 1] y, float[N, 10, 1] z)
    <float[6, 10] w, float[4, 10, 1] v, int64[1] ten = {10}, int64[1] one = {1}>
    { a = Gemm (x, w)
      n = Shape <start = 0, end = 1> (x)
      q = Concat <axis = 0> (n, ten, one)
      ra = Reshape (a, q)
      z = Expand (b, q)
      y = Conv (ra, v) }""",
    "a",
)

# -- moves ------------------------------------------------------------------------------------------------------------

case(
    "transpose_to_nhwc_and_back",
    conv("h = Transpose <perm = [0, 2, 3, 1]> (a) r = Relu (h) u = Transpose <perm = [0, 3, 1, 2]> (r)"),
)
case(
    "transpose_to_nhwc_and_flatten",
    conv("h = Transpose <perm = [0, 2, 3, 1]> (a) r = Relu (h) t = Flatten (r)", "float[640, 4] f", **_LAST),
)
case(
    "transpose_to_nhwc_and_matmul",
    conv(
        "h = Transpose <perm = [0, 2, 3, 1]> (a) s = Add (h, k) r = Relu (s)",
        "float[10] k, float[10, 4] q",
        last="y = MatMul (r, q)",
        out="float[N, 8, 8, 4] y",
    ),
)
case("transpose_twice_by_default", dense("t = Transpose (a) r = Relu (t) u = Transpose (r)"))
case(
    "transpose_of_a_weight",
    dense("k = Transpose <perm = [1, 0]> (q) m = MatMul (a, k) u = Relu (m)", "float[10, 10] q"),
    "a m",
)
case("squeeze_and_unsqueeze", dense("p = Unsqueeze (a, ax) r = Relu (p) u = Squeeze (r, ax)", "int64[2] ax = {1, -1}"))
case("squeeze_11", dense("p = Unsqueeze <axes = [1]> (a) r = Relu (p) u = Squeeze <axes = [1]> (r)"), opset=11)
case(
    "squeeze_without_axes",
    """g (float[2, 6] x) => (float[2, 4] y) <float[6, 3] w, float[3] b, float[3, 4] v, int64[1] ax = {2}>
    { a = Gemm (x, w, b)
      p = Unsqueeze (a, ax)
      r = Relu (p)
      s = Squeeze (r)
      y = Gemm (s, v) }""",
    "",
    "Squeeze without axes",
    sizes=({},),
)

case(
    "concat_two_producers",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
    <float[6, 3, 1, 1] w, float[6] b, float[9, 3, 1, 1] k, float[4, 21, 1, 1] v, float[4] c>
    { a = Conv (x, w, b)
      e = Conv (x, k)
      r = Relu (e)
      j = Concat <axis = 1> (a, r, a)
      y = Conv (j, v, c) }""",
    "a e",
)
case(
    "concat_with_the_input",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) <float[6, 3, 1, 1] w, float[6] b, float[4, 9, 1, 1] v>
    { a = Conv (x, w, b)
      j = Concat <axis = -3> (x, a)
      y = Conv (j, v) }""",
    refused="joined from a tensor without channels here",
)
case(
    "concat_with_a_constant",
    """g (float[2, 3, 8, 8] x) => (float[2, 4, 8, 8] y) <float[6, 3, 1, 1] w, float[2, 5, 8, 8] k, float[4, 11, 1, 1] v>
    { a = Conv (x, w)
      j = Concat <axis = 1> (k, a)
      y = Conv (j, v) }""",
    sizes=({},),
)
case("concat_along_space", conv("r = Relu (a) u = Concat <axis = 2> (a, r)"))
case(
    "concat_along_space_of_two",
    conv("e = Conv (x, k) u = Concat <axis = 3> (a, e)", "float[10, 3, 3, 3] k").replace(
        "(x, k)", "<pads = [1, 1, 1, 1]> (x, k)"
    ),
    "a e",
)
case(
    "concat_dense_blocks",
    conv(
        "j1 = Concat <axis = 1> (x, a) e = Conv (j1, k) r = Relu (e) u = Concat <axis = 1> (j1, r, a)",
        "float[5, 13, 1, 1] k",
    ).replace("float[4, 10, 1, 1] v", "float[4, 28, 1, 1] v"),
    "a e",
)
case(
    "concat_rectangles_along_a_third_axis",
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 12] w, int64[4] s = {-1, 3, 4, 1}, float[24, 4] v>
    { a = Gemm (x, w)
      t = Reshape (a, s)
      r = Relu (t)
      j = Concat <axis = 3> (t, r)
      f = Flatten (j)
      y = Gemm (f, v) }""",
)
case(
    "concat_rectangles_along_one_of_their_axes",
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 12] w, float[6, 4] k, int64[3] s = {-1, 3, 4}, int64[3] q = {-1, 1, 4}, float[16, 4] v>
    { a = Gemm (x, w)
      e = Gemm (x, k)
      t = Reshape (a, s)
      h = Reshape (e, q)
      j = Concat <axis = 1> (t, h)
      f = Flatten (j)
      y = Gemm (f, v) }""",
    "a e",
)

_PARTS = "float[4, 3, 1, 1] q, float[4, 7, 1, 1] q2"
_TWO = {"last": "y = Conv (r, q) t = Conv (e, q2)", "out": "float[N, 4, P, Q] y, float[N, 4, R, S] t"}
case("split_uneven", conv("d, e = Split <axis = 1> (a, s) r = Relu (d)", _PARTS + ", int64[2] s = {3, 7}", **_TWO))
case("split_11_attribute", conv("d, e = Split <axis = 1, split = [3, 7]> (a) r = Relu (d)", _PARTS, **_TWO), opset=11)
case("split_equal", conv("d, e = Split <axis = 1> (a) u = Concat <axis = 1> (e, d)"))
case(
    "split_18_num_outputs",
    conv("d, e, f = Split <axis = 1, num_outputs = 3> (a) u = Concat <axis = 1> (f, e, d)"),
    opset=18,
)
case(
    "split_single_channel",
    conv("d, e = Split <axis = 1> (a, s) r = Relu (d) u = Concat <axis = 1> (e, r)", "int64[2] s = {1, 9}"),
    refused="Split takes a single channel",
)
case(
    "slice_single_channel",
    conv(
        "d = Slice (a, lo, hi, ax) r = Relu (d) u = Concat <axis = 1> (a, r)",
        "int64[1] lo = {-4}, int64[1] hi = {7}, int64[1] ax = {1}",
    ).replace("float[4, 10, 1, 1] v", "float[4, 11, 1, 1] v"),
    refused="Slice takes a single channel",
)
case(
    "slice_single_channel_to_gate_the_others",
    conv(
        "d = Slice (a, lo, hi, ax) s = Sigmoid (d) r = Slice (a, hi, end, ax) u = Mul (r, s)",
        "int64[1] lo = {0}, int64[1] hi = {1}, int64[1] end = {10}, int64[1] ax = {1}",
    ).replace("float[4, 10, 1, 1] v", "float[4, 9, 1, 1] v"),
    refused="Slice takes a single channel",
)
case("split_space", conv("d, e = Split <axis = 2> (a, s) u = Concat <axis = 2> (e, d)", "int64[2] s = {3, 5}"))
case(
    "split_swapped_and_joined",
    conv("d, e = Split <axis = -3> (a, s) r = Relu (e) u = Concat <axis = 1> (r, d)", "int64[2] s = {4, 6}"),
)
case(
    "split_halves_added",
    conv("d, e = Split <axis = 1> (a, s) r = Sigmoid (d) u = Mul (r, e)", "int64[2] s = {5, 5}").replace(
        "float[4, 10, 1, 1] v", "float[4, 5, 1, 1] v"
    ),
)

_SLICED = "int64[1] lo = {2}, int64[1] hi = {7}, int64[1] ax = {1}, float[4, 5, 1, 1] q"
_ONE = {"last": "y = Conv (u, q)"}
case("slice_channels", conv("r = Relu (a) u = Slice (r, lo, hi, ax)", _SLICED, **_ONE))
case("slice_9_attributes", conv("u = Slice <starts = [2], ends = [7], axes = [1]> (a)", _SLICED, **_ONE), opset=9)
case("slice_9_without_axes", conv("u = Slice <starts = [0, 2], ends = [99, 7]> (a)", _SLICED, **_ONE), opset=9)
case(
    "slice_negative_bounds",
    conv("u = Slice (a, lo, hi, ax)", _SLICED.replace("{2}", "{-8}").replace("{7}", "{-3}"), **_ONE),
)
case(
    "slice_negative_start_at_the_front",
    conv("u = Slice (a, lo, hi, ax)", _SLICED.replace("{2}", "{-10}").replace("{7}", "{5}"), **_ONE),
)
case(
    "slice_to_the_end",
    conv("u = Slice (a, lo, hi, ax)", _SLICED.replace("{2}", "{5}").replace("{7}", "{9223372036854775807}"), **_ONE),
)
case(
    "slice_literal_end", conv("u = Slice (a, lo, hi, ax)", _SLICED.replace("{2}", "{5}").replace("{7}", "{10}"), **_ONE)
)
case(
    "slice_with_steps",
    conv(
        "u = Slice (a, lo, hi, ax, st)",
        _SLICED.replace("{2}", "{0}").replace("{7}", "{10}") + ", int64[1] st = {2}",
        **_ONE,
    ),
    "",
    "Slice takes every 2th channel",
)
case(
    "slice_reversed",
    conv(
        "u = Slice (a, lo, hi, ax, st)",
        _SLICED.replace("{2}", "{-1}").replace("{7}", "{-6}") + ", int64[1] st = {-1}",
        **_ONE,
    ),
    "",
    "Slice takes every -1th channel",
)
case(
    "slice_space_with_steps",
    conv(
        "u = Slice (a, lo, hi, ax, st)",
        "int64[2] lo = {0, -1}, int64[2] hi = {8, -9}, int64[2] ax = {-2, 3}, int64[2] st = {2, -1}",
    ),
)
case(
    "slice_channels_and_space",
    conv(
        "u = Slice (a, lo, hi, ax)",
        "int64[3] lo = {1, 2, 0}, int64[3] hi = {8, 7, 100}, int64[3] ax = {2, 1, 0}, float[4, 5, 1, 1] q",
        **_ONE,
    ),
)
case(
    "slice_two_parts_added",
    conv(
        "d = Slice (a, o, m, ax) e = Slice (a, m, z, ax) r = Relu (e) u = Add (d, r)",
        "int64[1] o = {0}, int64[1] m = {5}, int64[1] z = {10}, int64[1] ax = {1}, float[4, 5, 1, 1] q",
        **_ONE,
    ),
)
case(
    "slice_overlapping_parts",
    conv(
        "d = Slice (a, o, m, ax) e = Slice (a, o2, z, ax) u = Concat <axis = 1> (d, e, a)",
        "int64[1] o = {0}, int64[1] m = {6}, int64[1] o2 = {4}, int64[1] z = {10}, int64[1] ax = {1}",
    ).replace("float[4, 10, 1, 1] v", "float[4, 22, 1, 1] v"),
)
case(
    "slice_bounds_depend_on_an_input",
    conv(
        "h = Add (lo, five) u = Slice (a, lo, h, ax)",
        "int64[1] ax = {1}, int64[1] five = {5}, float[4, 5, 1, 1] q",
        **_ONE,
    ).replace("8] x)", "8] x, int64[1] lo)"),
    "",
    "the bounds of Slice are not known",
)

_PADDED = "float[4, 15, 1, 1] q"
case(
    "pad_channels_with_zeros",
    conv("r = Relu (a) u = Pad (r, p)", _PADDED + ", int64[8] p = {0, 2, 0, 0, 0, 3, 0, 0}", **_ONE),
)
case(
    "pad_channels_with_a_value",
    conv("u = Pad (a, p, k)", _PADDED + ", int64[8] p = {0, 2, 0, 0, 0, 3, 0, 0}, float k = {1.5}", **_ONE),
)
case("pad_2_attributes", conv("u = Pad <pads = [0, 5, 1, 0, 0, 0, 0, 1]> (a)", _PADDED, **_ONE), opset=10)
case("pad_2_value", conv("u = Pad <pads = [0, 5, 1, 0, 0, 0, 0, 1], value = -0.5> (a)", _PADDED, **_ONE), opset=10)
case(
    "pad_18_axes",
    conv("u = Pad (a, p, , ax)", _PADDED + ", int64[4] p = {0, 4, 1, 1}, int64[2] ax = {-1, 1}", **_ONE),
    opset=18,
)
case("pad_space_reflected", conv('u = Pad <mode = "reflect"> (a, p)', "int64[8] p = {0, 0, 2, 0, 0, 0, 1, 1}"))
case(
    "pad_space_with_a_value",
    conv("r = Relu (a) u = Pad (r, p, k)", "int64[8] p = {0, 0, 2, 0, 0, 0, 1, 1}, float k = {2}"),
)
case(
    "pad_channels_reflected",
    conv('u = Pad <mode = "reflect"> (a, p)', _PADDED + ", int64[8] p = {0, 2, 0, 0, 0, 3, 0, 0}", **_ONE),
    "",
    "channels are padded in a way that cannot be rewritten",
)
case(
    "pad_crops_channels",
    conv("u = Pad (a, p)", "float[4, 7, 1, 1] q, int64[8] p = {0, -2, 0, 0, 0, -1, 0, 0}", **_ONE),
    "",
    "channels are padded in a way that cannot be rewritten",
)
case("pad_crops_space", conv("u = Pad (a, p)", "int64[8] p = {0, 0, -2, 0, 0, 0, 1, -1}"))
case(
    "pad_shortcut",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, P, Q] y)
    <float[6, 3, 3, 3] w, float[6] b, float[12, 6, 3, 3] k, float[12] d, int64[8] p = {0, 3, 0, 0, 0, 3, 0, 0},
     int64[2] lo = {0, 0}, int64[2] hi = {8, 8}, int64[2] ax = {2, 3}, int64[2] st = {2, 2}, float[4, 12, 1, 1] v>
    { a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      r = Relu (a)
      e = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, k, d)
      h = Slice (r, lo, hi, ax, st)
      s = Pad (h, p)
      j = Add (e, s)
      q = Relu (j)
      y = Conv (q, v) }""",
    "a e",
)
case("gather_space", conv("u = Gather <axis = -1> (a, i)", "int64[3] i = {1, 0, -3}"))
case(
    "gather_a_position",
    conv(
        "t = Gather <axis = 3> (a, i) p = Gather <axis = 2> (t, i)",
        "int64 i = {2}, float[10, 4] q",
        last="y = Gemm (p, q, c)",
        out="float[N, 4] y",
    ),
)
case(
    "gather_with_a_matrix_of_indices",
    conv(
        "g5 = Gather <axis = 2> (a, i) u = ReduceSum <keepdims = 0> (g5, ax)",
        "int64[2, 3] i = {0, 1, 2, 3, 4, 5}, int64[1] ax = {2}",
    ),
)
case(
    "gather_from_an_embedding",
    """g (int64[N, 5] i) => (float[N, 5, 4] y) <float[7, 6] k, float[6, 9] w, float[9] b, float[9, 4] v>
    { x = Gather (k, i)
      a = MatMul (x, w)
      e = Add (a, b)
      u = Relu (e)
      y = MatMul (u, v) }""",
    "x a",
    "Gather picks from this axis",
)

# -- what no rule covers ----------------------------------------------------------------------------------------------

case(
    "layer_normalization_of_channels",
    dense("u = LayerNormalization (a, s)", "float[10] s"),
    "",
    "LayerNormalization works along this axis",
)
case(
    "no_rule_after_a_slimmed_layer",
    dense(
        'r = Relu (a) e = Gemm (r, k) u = com.microsoft.CDist <metric = "euclidean"> (e, s)',
        "float[10, 10] k, float[10, 10] s",
    ),
    "a",
    "no rule for com.microsoft:CDist",
)
case("no_rule_size_of_channels", dense("s = Size (a) f = Cast <to = 1> (s) u = Div (a, f)"), "", "no rule for Size")
case("graph_output_is_whole", dense("u = Relu (a)", out="float[N, 4] y, float[N, 10] u"), "", "graph output")
case("weight_is_an_output", dense("u = Relu (a)", out="float[N, 4] y, float[6, 10] w"), "", "graph output")
case(
    "captured_by_a_subgraph",
    dense(
        """r = Relu (a)
        u = If (flag) <
          then_branch = yes () => (float[N, 10] p) { p = Neg (r) },
          else_branch = no () => (float[N, 10] q) { q = Exp (r) }
        >""",
    ).replace("6] x)", "6] x, bool flag)"),
    "",
    "used inside a subgraph",
)
case(
    "beside_a_subgraph",
    dense(
        """r = Relu (a)
        h = If (flag) <
          then_branch = yes () => (float p) { p = Constant <value = float {2}> () },
          else_branch = no () => (float q) { q = Constant <value = float {3}> () }
        >
        u = Mul (r, h)""",
    ).replace("6] x)", "6] x, bool flag)"),
)
case(
    "two_inputs_two_outputs",
    """g (float[N, 6] x, float[N, 5] z) => (float[N, 4] y, float[N, 3] t)
    <float[6, 9] w, float[9] b, float[5, 8] k, float[17, 4] v, float[8, 3] q>
    { a = Gemm (x, w, b)
      r = Relu (a)
      e = Gemm (z, k)
      j = Concat <axis = 1> (r, e)
      y = Gemm (j, v)
      t = Gemm (e, q) }""",
    "a e",
)
