"""Weights behind quantisers, and activations that go through them: integers are cut, with scales and zero points.

Activations are quantised to 16 bits in fine steps, so that a rounding that falls the other way is below the tolerance.
"""

from __future__ import annotations

from rules.cases import case, conv, dense

Q8 = "int8[10, 3, 3, 3] wq, int8[4, 10, 1, 1] vq"


def quantised(body: str, more: str, weights: str) -> str:
    """Conv a of 10 channels, `body` from a to u, Conv y of 4; `weights` makes w, v, b and c of constants."""
    return f"""g (float[N, 3, 8, 8] x) => (float[N, 4, P, Q] y) <{more}>
    {{ {weights}
       a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
       {body}
       y = Conv (u, v, c) }}"""


case(
    "dequantised_one_scale",
    quantised(
        "u = Relu (a)",
        f"{Q8}, float[10] b, float[4] c, float tiny, int8 z",
        "w = DequantizeLinear (wq, tiny) v = DequantizeLinear (vq, tiny, z)",
    ),
    opset=13,
)
case(
    "dequantised_scale_per_channel",
    quantised(
        "u = Relu (a)",
        f"{Q8}, int32[10] bq, int32[4] cq, float[10] tiny, float[4] tiny2, int8[10] z, int8[4] z2, float[10] tiny3,"
        " float tiny4, int32[10] zb = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}",
        """w = DequantizeLinear <axis = 0> (wq, tiny, z)
           v = DequantizeLinear <axis = -4> (vq, tiny2, z2)
           b = DequantizeLinear <axis = 0> (bq, tiny3, zb)
           c = DequantizeLinear (cq, tiny4)""",
    ),
    opset=13,
)
case(
    "dequantised_scale_per_input_channel",
    quantised(
        "r = Relu (a) d = Conv <group = 10> (r, k) u = LeakyRelu <alpha = 0.3> (d)",
        f"{Q8}, uint8[10, 1, 3, 3] kq, float[10] b, float[4] c, float[3] tiny, float[10] tiny2, uint8[10] z",
        """w = DequantizeLinear <axis = 1> (wq, tiny)
           k = DequantizeLinear <axis = 0> (kq, tiny2, z)
           v = DequantizeLinear <axis = 1> (vq, tiny2)""",
    ),
    opset=13,
)
case(
    "dequantised_before_batchnorm",
    quantised(
        "n = BatchNormalization (a, ga, be, me, var) u = Relu (n)",
        f"{Q8}, float[10] b, float[4] c, float tiny, float[10] ga, float[10] be, float[10] me, float[10] var",
        "w = DequantizeLinear (wq, tiny) v = DequantizeLinear (vq, tiny)",
    ),
    opset=13,
    left={"BatchNormalization": 1},
    sizes=({"N": 1}, {"N": 3}),
)
case(
    "dequantised_residual_shares_a_scale",
    quantised(
        "r = Relu (a) e = Conv (r, k) u = Add (e, r)",
        f"{Q8}, int8[10, 10, 1, 1] kq, float[10] b, float[4] c, float[10] tiny, float tiny2",
        """w = DequantizeLinear <axis = 0> (wq, tiny)
           k = DequantizeLinear <axis = 0> (kq, tiny)
           v = DequantizeLinear (vq, tiny2)""",
    ),
    "a e",
    opset=13,
)
case(
    "dequantised_grouped_conv",
    quantised(
        "r = Relu (a) e = Conv <group = 2> (r, k, d) u = Relu (e)",
        f"{Q8}, int8[10, 5, 1, 1] kq, float[10] b, float[4] c, float[10] d, float[10] tiny, int8[10] z, float tiny2",
        """w = DequantizeLinear <axis = 0> (wq, tiny, z)
           k = DequantizeLinear <axis = 0> (kq, tiny, z)
           v = DequantizeLinear (vq, tiny2)""",
    ),
    "a e",
    opset=13,
)
case(
    "dequantised_grouped_conv_scale_per_input_freezes",
    quantised(
        "r = Relu (a) o = Conv (r, l) e = Conv <group = 2> (o, k) u = Relu (e)",
        f"{Q8}, int8[10, 5, 1, 1] kq, int8[10, 10, 1, 1] lq, float[10] b, float[4] c, float[5] tiny, float tiny2",
        """w = DequantizeLinear (wq, tiny2)
           l = DequantizeLinear (lq, tiny2)
           k = DequantizeLinear <axis = 1> (kq, tiny)
           v = DequantizeLinear (vq, tiny2)""",
    ),
    "a",
    "the weight of a grouped Conv",
    opset=13,
)
case(
    "dequantised_only_the_consumer",
    conv(
        "u = Relu (a)",
        "int8[4, 10, 1, 1] vq, float[4] tiny",
        "q = DequantizeLinear <axis = 0> (vq, tiny) y = Conv (u, q, c)",
    ),
    opset=13,
)
case(
    "dequantised_gemm_transposed_behind",
    """g (float[N, 6] x) => (float[N, 4] y)
    <int8[10, 6] wq, int32[10] bq, float[10] tiny, float tiny2, int4[4, 10] vq, float[4] tiny3, float[4] c>
    { wd = DequantizeLinear <axis = 0> (wq, tiny)
      w = Transpose <perm = [1, 0]> (wd)
      b = DequantizeLinear (bq, tiny2)
      m = MatMul (x, w)
      a = Add (m, b)
      u = Relu (a)
      v = DequantizeLinear <axis = 0> (vq, tiny3)
      y = Gemm <transB = 1> (u, v, c) }""",
    "m",
    opset=21,
    ir=10,
)
case(
    "quantised_and_dequantised_weight",
    dense(
        "u = Relu (a)",
        "float tiny, int8 z, float[4] tiny4, int8[4] z4",
        """q = QuantizeLinear <axis = 1> (v, tiny4, z4)
           d = DequantizeLinear <axis = 1> (q, tiny4, z4)
           y = Gemm (u, d, c)""",
    ),
    opset=13,
)
case(
    "quantised_both_weights",
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 10] w, float[10] b, float[10, 4] v, float[10] tiny, uint8[10] z, float tiny2, int16 z2 = {7}>
    { q = QuantizeLinear <axis = 1> (w, tiny, z)
      d = DequantizeLinear <axis = 1> (q, tiny, z)
      a = Gemm (x, d, b)
      u = Relu (a)
      qv = QuantizeLinear (v, tiny2, z2)
      dv = DequantizeLinear (qv, tiny2, z2)
      y = Gemm (u, dv) }""",
    opset=21,
    ir=10,
)
FINE = "float step = {0.0004}, int16 zero = {11}"
case(
    "quantised_activation",
    conv(
        """q = QuantizeLinear (a, step, zero)
           d = DequantizeLinear (q, step, zero)
           r = Relu (d)
           q2 = QuantizeLinear (r, step, zero)
           t = Transpose <perm = [0, 2, 3, 1]> (q2)
           t2 = Transpose <perm = [0, 3, 1, 2]> (t)
           u = DequantizeLinear (t2, step, zero)""",
        FINE,
    ),
    opset=21,
    ir=10,
)
case(
    "quantised_activation_scale_per_channel",
    conv(
        "q = QuantizeLinear <axis = 1> (a, fine, zeros) u = DequantizeLinear <axis = -3> (q, fine, zeros)",
        "float[10] fine = {0.0004, 0.0005, 0.0006, 0.0003, 0.0004, 0.0004, 0.0006, 0.0007, 0.0003, 0.0004},"
        " int16[10] zeros",
    ),
    opset=21,
    ir=10,
)
case(
    "quantised_everything",
    quantised(
        """q = QuantizeLinear (a, step, zero)
           d = DequantizeLinear (q, step, zero)
           r = Relu (d)
           e = Conv (r, k, e1)
           s = Add (e, r)
           q2 = QuantizeLinear (s, step, zero)
           u = DequantizeLinear (q2, step, zero)""",
        f"{Q8}, int8[10, 10, 1, 1] kq, int32[10] bq, int32[10] eq, int32[4] cq, float[10] tiny, float tiny2, {FINE}",
        """w = DequantizeLinear <axis = 0> (wq, tiny)
           k = DequantizeLinear (kq, tiny2)
           v = DequantizeLinear (vq, tiny2)
           b = DequantizeLinear <axis = 0> (bq, tiny)
           e1 = DequantizeLinear <axis = 0> (eq, tiny)
           c = DequantizeLinear (cq, tiny2)""",
    ),
    "a e",
    opset=21,
    ir=10,
)
case(
    "quantised_by_blocks_freezes",
    """g (float[N, 8] x) => (float[N, 4] y) <int8[8, 10] wq, float[2, 10] tiny, float[10, 4] v>
    { w = DequantizeLinear <axis = 0, block_size = 4> (wq, tiny)
      a = MatMul (x, w)
      u = Relu (a)
      y = MatMul (u, v) }""",
    "",
    "scales per block of channels",
    opset=21,
    ir=10,
)
case(
    "quantised_dynamically_freezes",
    dense("r = Relu (a) q, s, z = DynamicQuantizeLinear (r) u = DequantizeLinear (q, s, z)"),
    "",
    "the scale comes from the range of all channels",
    opset=13,
)
case(
    "quantised_by_microsoft",
    conv(
        """q = com.microsoft.QuantizeLinear (a, step, zero)
           d = com.microsoft.DequantizeLinear (q, step, zero)
           u = Relu (d)
           k = com.microsoft.DequantizeLinear <axis = 0> (vq, tiny, zeros)""",
        f"{FINE}, int8[4, 10, 1, 1] vq, float[4] tiny, int8[4] zeros",
        "y = Conv (u, k, c)",
    ),
    opset=17,
)

# -- operators on integers: their sums are exact, so that results are equal to the bit --------------------------------


def integers(body: str, more: str = "") -> str:
    """x to uint8, QLinearConv a of 10 channels, `body` from a to u, QLinearConv y of 4, back to float."""
    return f"""g (float[N, 3, 8, 8] x) => (float[N, 4, P, Q] y)
    <int8[10, 3, 3, 3] low_w, int32[10] low_b, float[10] tiny_w, int8[10] zeros = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
     int8[4, 10, 1, 1] low_v, float tiny_v, int8 none = {{0}}, float s = {{0.03}}, uint8 z = {{128}}, uint8 za = {{9}}
     {", " + more if more else ""}>
    {{ q = QuantizeLinear (x, s, z)
       a = QLinearConv <pads = [1, 1, 1, 1]> (q, s, z, low_w, tiny_w, zeros, s, za, low_b)
       {body}
       o = QLinearConv (u, s, za, low_v, tiny_v, none, s, z)
       y = DequantizeLinear (o, s, z) }}"""


case("qlinear_conv", integers("u = MaxPool <kernel_shape = [2, 2]> (a)"), "a", opset=13)
case(
    "qlinear_conv_depthwise",
    integers(
        "u = QLinearConv <group = 10> (a, s, za, low_k, tiny_k, zeros2, s, za, low_c)",
        "int8[10, 1, 3, 3] low_k, float[10] tiny_k, int8[10] zeros2 = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, int32[10] low_c",
    ),
    "a",
    opset=10,
)
case(
    "qlinear_residual",
    integers(
        """e = QLinearConv (a, s, za, low_k, tiny_k, none, s, za)
           r = com.microsoft.QLinearAdd (e, s, za, a, s, za, s, za)
           u = com.microsoft.QLinearLeakyRelu <alpha = 0.1> (r, s, za, s, za)""",
        "int8[10, 10, 1, 1] low_k, float tiny_k",
    ),
    "a e",
    opset=13,
)
case(
    "qlinear_gate",
    integers(
        """p = com.microsoft.QLinearGlobalAveragePool <channels_last = 0> (a, s, za, s, za)
           e = QLinearConv (p, s, za, low_k, tiny_k, none, s, za)
           f = com.microsoft.QLinearSigmoid (e, s, za, s, za)
           m = com.microsoft.QLinearMul (a, s, za, f, s, za, s, za)
           u = com.microsoft.QLinearAveragePool <kernel_shape = [2, 2]> (m, s, za, s, za)""",
        "int8[10, 10, 1, 1] low_k, float tiny_k",
    ),
    "a e",
    opset=13,
)
case(
    "qlinear_concat",
    integers(
        """e = QLinearConv (a, s, za, low_k, tiny_k, none, s, za)
           j = com.microsoft.QLinearConcat <axis = 1> (s, za, a, s, za, e, s, za)
           u = QLinearConv (j, s, za, low_l, tiny_k, none, s, za)""",
        "int8[6, 10, 1, 1] low_k, float tiny_k, int8[10, 16, 1, 1] low_l",
    ),
    "a e u",
    opset=13,
)
case(
    "qlinear_concat_with_the_input_stays",
    integers(
        "j = com.microsoft.QLinearConcat <axis = 1> (s, za, a, s, za, q, s, z)"
        " u = QLinearConv (j, s, za, low_l, tiny_k, none, s, za)",
        "float tiny_k, int8[10, 13, 1, 1] low_l",
    ),
    "u",
    "joins tensors without channels",
    opset=13,
)
case(
    "qlinear_conv_grouped_stays",
    integers(
        """e = QLinearConv (a, s, za, low_l, tiny_k, none, s, za)
           u = QLinearConv <group = 2> (e, s, za, low_k, tiny_k, none, s, za)""",
        "int8[10, 5, 1, 1] low_k, float tiny_k, int8[10, 10, 1, 1] low_l",
    ),
    "a",
    r"grouped QLinearConv \(2 groups\)",
    opset=13,
)
case(
    "qlinear_pool_with_channels_last_stays",
    integers(
        """t = Transpose <perm = [0, 2, 3, 1]> (a)
           p = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (t, s, za, s, za)
           u = Transpose <perm = [0, 3, 1, 2]> (p)"""
    ),
    "",
    "QLinearGlobalAveragePool with channels last",
    opset=13,
)
case(
    "qlinear_matmul_and_gemm",
    """g (float[N, 6] x) => (float[N, 4] y)
    <int8[6, 10] low_w, float[10] tiny_w, int8[10] zeros = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, int8[8, 10] low_k,
     float tiny_k, int8 none = {0}, int32[8] low_b, int8[8, 4] low_v, float tiny_v, float s = {0.03}, uint8 z = {100}>
    { q = QuantizeLinear (x, s, z)
      a = QLinearMatMul (q, s, z, low_w, tiny_w, zeros, s, z)
      e = com.microsoft.QGemm <transB = 1> (a, s, z, low_k, tiny_k, none, low_b, s, z)
      o = com.microsoft.QGemm (e, s, z, low_v, tiny_v, none, , s, z)
      y = DequantizeLinear (o, s, z) }""",
    "a e",
    opset=13,
)
case(
    "integer_products_stay",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, P, Q] y)
    <float[10, 3, 1, 1] w, int8[4, 10, 1, 1] vq, float tiny>
    { a = Conv (x, w)
      q, s, z = DynamicQuantizeLinear (a)
      i = ConvInteger (q, vq, z)
      f = Cast <to = 1> (i)
      t = Mul (s, tiny)
      y = Mul (f, t) }""",
    "",
    "the scale comes from the range of all channels",
    opset=13,
)
case(
    "integer_matrix_products_stay",
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 10] w, float[10] b, int8[10, 10] kq, int8[10, 10] kq2, float tiny, int8[10, 10] lq, uint8[10, 1, 16] nq,
     float[10] tiny4, float[10, 4] v>
    { a = Gemm (x, w, b)
      d = com.microsoft.DynamicQuantizeMatMul (a, kq, tiny)
      q, s, z = DynamicQuantizeLinear (d)
      t = Mul (s, tiny)
      m = com.microsoft.MatMulIntegerToFloat (q, kq2, s, tiny, z)
      q2, s2, z2 = DynamicQuantizeLinear (m)
      i = MatMulInteger (q2, lq, z2)
      f = Cast <to = 1> (i)
      n = com.microsoft.MatMulNBits <K = 10, N = 10, bits = 4, block_size = 32> (f, nq, tiny4)
      e = Tanh (n)
      y = Gemm (e, v) }""",
    "",
    "multiplies integers",
    opset=13,
)
