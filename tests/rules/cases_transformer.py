"""Attention, feed-forward layers and channel shuffles as exporters write them."""

from __future__ import annotations

from rules.cases import case

_SCORES = """s0 = Transpose <perm = [0, 1, 3, 2]> (k)
      s1 = MatMul (q, s0)
      s2 = Mul (s1, root)
      p = Softmax <axis = -1> (s2)
      o0 = MatMul (p, v)
      o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
      o2 = Reshape (o1, back)
      y = MatMul (o2, out)"""


def attention(body: str, weights: str, heads: int = 4, width: int = 6, scores: str = _SCORES) -> str:
    """`body` makes q, k, v (N, heads, 5, width) of x (N, 5, 12)."""
    return f"""g (float[N, 5, 12] x) => (float[N, 5, 7] y)
    <{weights}, float root = {{0.4}}, int64[3] back = {{-1, 5, {heads * width}}}, float[{heads * width}, 7] out>
    {{ {body}
      {scores} }}"""


def _each(heads: int, width: int, letters: str = "qkv") -> str:
    return "\n".join(
        f"{c}0 = MatMul (x, w{c}) {c}1 = Reshape ({c}0, split{heads}) {c} = Transpose <perm = [0, 2, 1, 3]> ({c}1)"
        for c in letters
    )


def _separate(heads: int, width: int) -> str:
    return (
        ", ".join(f"float[12, {heads * width}] w{c}" for c in "qkv")
        + f", int64[4] split{heads} = {{0, 0, {heads}, {width}}}"
    )


case("attention", attention(_each(4, 6), _separate(4, 6)), "q0 k0 v0")
case("attention_few_wide_heads", attention(_each(2, 9), _separate(2, 9), 2, 9), "q0 k0 v0")
# one head is a product like any other: the width that q and k share leaves, and that of v
case("attention_one_head", attention(_each(1, 6), _separate(1, 6), 1, 6), "q0 k0 v0")
case(
    "attention_fused_qkv",
    attention(
        """a = MatMul (x, w) b = Add (a, bias) r = Reshape (b, five) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
        q = Gather (t, i0) k = Gather (t, i1) v = Gather (t, i2)""",
        "float[12, 72] w, float[72] bias, int64[5] five = {-1, 5, 3, 4, 6}, int64 i0 = {0}, int64 i1 = {1},"
        " int64 i2 = {2}",
    ),
)
case(
    "attention_fused_qkv_of_three_heads",  # fewer heads than channels in each: still whole heads
    attention(
        """a = MatMul (x, w) r = Reshape (a, five) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
        q0, k0, v0 = Split <axis = 0> (t, ones)
        q = Squeeze (q0, zero) k = Squeeze (k0, zero) v = Squeeze (v0, zero)""",
        "float[12, 90] w, int64[5] five = {-1, 5, 3, 3, 10}, int64[3] ones = {1, 1, 1}, int64[1] zero = {0}",
        3,
        10,
    ),
)
case(
    "attention_fused_qkv_by_slices",
    attention(
        """a = MatMul (x, w) r = Reshape (a, five) t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
        q0 = Slice (t, i0, i1, i0) k0 = Slice (t, i1, i2, i0) v0 = Slice (t, i2, i3, i0)
        q = Squeeze (q0, i0) k = Squeeze (k0, i0) v = Squeeze (v0, i0)""",
        "float[12, 90] w, int64[5] five = {-1, 5, 3, 3, 10}, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2},"
        " int64[1] i3 = {3}",
        3,
        10,
    ),
)
case(
    "attention_split_qkv",
    attention(
        """a = MatMul (x, w) q0, k0, v0 = Split <axis = 2> (a, thirds)
        q1 = Reshape (q0, s4) q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k1 = Reshape (k0, s4) k = Transpose <perm = [0, 2, 1, 3]> (k1)
        v1 = Reshape (v0, s4) v = Transpose <perm = [0, 2, 1, 3]> (v1)""",
        "float[12, 72] w, int64[3] thirds = {24, 24, 24}, int64[4] s4 = {0, 0, 4, 6}",
    ),
)
case(
    "attention_sliced_qkv_with_heads_from_minus_one",
    attention(
        """a = MatMul (x, w)
        q0 = Slice (a, z0, z24, two) k0 = Slice (a, z24, z48, two) v0 = Slice (a, z48, z72, two)
        q1 = Reshape (q0, s4) q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k1 = Reshape (k0, s4) k = Transpose <perm = [0, 2, 1, 3]> (k1)
        v1 = Reshape (v0, s4) v = Transpose <perm = [0, 2, 1, 3]> (v1)""",
        "float[12, 72] w, int64[1] z0 = {0}, int64[1] z24 = {24}, int64[1] z48 = {48}, int64[1] z72 = {72},"
        " int64[1] two = {2}, int64[4] s4 = {0, 0, -1, 6}",
    ),
)
case(
    "attention_grouped_query",  # a key-value head leaves with both of its query heads
    attention(
        """q0 = MatMul (x, wq) q1 = Reshape (q0, sixes) q = Transpose <perm = [0, 2, 1, 3]> (q1)
        k0 = MatMul (x, wk) k1 = Reshape (k0, pairs) k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
        k3 = Unsqueeze (k2, two) k4 = Expand (k3, wide) k = Reshape (k4, heads)
        v0 = MatMul (x, wv) v1 = Reshape (v0, pairs) v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
        v3 = Unsqueeze (v2, two) v4 = Expand (v3, wide) v = Reshape (v4, heads)""",
        "float[12, 36] wq, float[12, 18] wk, float[12, 18] wv, int64[4] sixes = {0, 0, 6, 6},"
        " int64[4] pairs = {0, 0, 3, 6}, int64[1] two = {2}, int64[5] wide = {1, 3, 2, 5, 6},"
        " int64[4] heads = {-1, 6, 5, 6}",
        6,
        6,
    ),
    "q0 k0 v0",
)
case(
    "attention_with_position_bias_and_temperature",
    attention(
        _each(4, 6),
        _separate(4, 6) + ", float[1, 4, 5, 5] position, float[4, 1, 1] heat",
        scores=_SCORES.replace("p = Softmax", "s3 = Add (s2, position) s4 = Mul (s3, heat) p = Softmax").replace(
            "(s2)\n      o0", "(s4)\n      o0"
        ),
    ),
    "q0 k0 v0",
)
case(
    "attention_of_channels",  # the products run over the tokens: heads leave here too
    attention(
        _each(4, 6),
        _separate(4, 6) + ", float t1",
        scores="""q2 = Transpose <perm = [0, 1, 3, 2]> (q)
      s1 = MatMul (q2, k)
      p = Softmax <axis = -1> (s1)
      v2 = Transpose <perm = [0, 1, 3, 2]> (v)
      o0 = MatMul (p, v2)
      o1 = Transpose <perm = [0, 3, 1, 2]> (o0)
      o2 = Reshape (o1, back)
      o3 = Mul (o2, t1)
      o4 = Mul (o3, root)
      y = MatMul (o4, out)""",
    ),
    "q0 k0 v0",
)
case(
    "attention_across_two_inputs",
    """g (float[N, 5, 12] x, float[N, 7, 9] z) => (float[N, 5, 8] y)
    <float[12, 24] wq, float[9, 24] wk, float[9, 30] wv, int64[4] s4 = {0, 0, 4, 6}, int64[4] t4 = {0, 0, 4, 6},
     int64[4] u4 = {0, 0, -1, 10}, int64[3] back = {0, 0, -1}, float[40, 8] out, float[9, 40] wv2>
    { q0 = MatMul (x, wq) q1 = Reshape (q0, s4) q = Transpose <perm = [0, 2, 1, 3]> (q1)
      k0 = MatMul (z, wk) k1 = Reshape (k0, t4) k = Transpose <perm = [0, 2, 3, 1]> (k1)
      v0 = MatMul (z, wv2) v1 = Reshape (v0, u4) v = Transpose <perm = [0, 2, 1, 3]> (v1)
      s = MatMul (q, k) p = Softmax <axis = -1> (s)
      o0 = MatMul (p, v) o1 = Transpose <perm = [0, 2, 1, 3]> (o0) o2 = Reshape (o1, back)
      y = MatMul (o2, out) }""",
    "q0 k0 v0",
)
case(
    "linear_attention_contracts_its_width",  # no heads: the width that q and k share is free
    """g (float[N, 5, 12] x) => (float[N, 5, 7] y)
    <float[12, 10] wq, float[12, 10] wk, float[12, 8] wv, float[8, 7] out>
    { q = MatMul (x, wq) q1 = Relu (q)
      k = MatMul (x, wk) k1 = Relu (k) k2 = Transpose <perm = [0, 2, 1]> (k1)
      v = MatMul (x, wv)
      kv = MatMul (k2, v)
      o = MatMul (q1, kv)
      y = MatMul (o, out) }""",
    "q k v",
)
case(
    "feed_forward_swiglu",
    """g (float[N, 5, 12] x) => (float[N, 5, 12] y) <float[12, 20] w1, float[12, 20] w2, float[20, 12] w3>
    { a = MatMul (x, w1) s = Sigmoid (a) silu = Mul (a, s)
      e = MatMul (x, w2) h = Mul (silu, e)
      d = MatMul (h, w3) y = Add (x, d) }""",
    "a e",
)
case(
    "feed_forward_geglu_of_one_matrix",  # halves of one product gate each other
    """g (float[N, 5, 12] x) => (float[N, 5, 12] y)
    <float[12, 40] w, float[40] b, int64[2] halves = {20, 20}, float[20, 12] w3>
    { a = MatMul (x, w) c = Add (a, b) l, r = Split <axis = -1> (c, halves)
      q = Erf (r) h = Mul (l, q)
      d = MatMul (h, w3) y = Add (x, d) }""",
)
case(
    "feed_forward_behind_layer_norm",
    """g (float[N, 5, 12] x) => (float[N, 5, 6] y)
    <float[12, 16] w, float[16] ga, float[16] be, float[16, 20] w1, float[20] b1, float[20, 16] w2, float[16, 6] w3>
    { a = MatMul (x, w)
      n = LayerNormalization <axis = -1> (a, ga, be)
      e = MatMul (n, w1) f = Add (e, b1) r = Relu (f)
      d = MatMul (r, w2)
      j = Add (a, d)
      y = MatMul (j, w3) }""",
    "e",
    "LayerNormalization works along this axis",
)
case(
    "layer_norm_over_several_axes",
    """g (float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y)
    <float[6, 3, 1, 1] w, float[6, 4, 4] ga, float[6, 4, 4] be, float[5, 6, 1, 1] v>
    { a = Conv (x, w) n = LayerNormalization <axis = 1> (a, ga, be) y = Conv (n, v) }""",
    "",
    "LayerNormalization works along this axis",
)
case(
    "layer_norm_whose_mean_is_used",
    """g (float[N, 5, 12] x) => (float[N, 5, 6] y, float[N, 5, 1] mean)
    <float[12, 16] w, float[16] ga, float[16, 6] v>
    { a = MatMul (x, w) n, mean = LayerNormalization <axis = -1> (a, ga) y = MatMul (n, v) }""",
    "",
    "the statistics of LayerNormalization are used",
)
case(
    "shuffle_of_grouped_convs",  # the same members of every group
    """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[18, 3, 1, 1] w, float[36, 6, 3, 3] k, float[36] b, float[12, 12, 3, 3] k2, float[4, 12, 1, 1] v,
     int64[5] cut = {0, 3, 12, 6, 6}, int64[4] join = {0, -1, 6, 6}>
    { a = Conv (x, w) r = Relu (a)
      e = Conv <group = 3, pads = [1, 1, 1, 1]> (r, k, b)
      s0 = Reshape (e, cut) s1 = Transpose <perm = [0, 2, 1, 3, 4]> (s0) s = Reshape (s1, join)
      d = Conv <group = 3, pads = [1, 1, 1, 1]> (s, k2) q = Relu (d)
      y = Conv (q, v) }""",
    "a e d",
)
case(
    "shuffle_of_many_small_groups",
    """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[24, 3, 1, 1] w, float[4, 24, 1, 1] v, int64[5] cut = {0, 8, 3, 6, 6}, int64[4] join = {0, 24, 6, 6}>
    { a = Conv (x, w) r = Relu (a)
      s0 = Reshape (r, cut) s1 = Transpose <perm = [0, 2, 1, 3, 4]> (s0) s = Reshape (s1, join)
      y = Conv (s, v) }""",
)
case(
    "grouped_conv_reads_a_concat",  # one group reads a, two read e: all keep equally many
    """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[6, 3, 1, 1] w, float[12, 3, 1, 1] w2, float[9, 6, 3, 3] k, float[4, 9, 1, 1] v>
    { a = Conv (x, w) e = Conv (x, w2) j = Concat <axis = 1> (a, e)
      d = Conv <group = 3, pads = [1, 1, 1, 1]> (j, k) q = Relu (d)
      y = Conv (q, v) }""",
    "a e d",
)
case(
    "grouped_conv_with_groups_of_another_size",
    """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[24, 3, 1, 1] w, float[24, 12, 1, 1] k, float[12, 6, 3, 3] k2, float[12] b2, float[4, 12, 1, 1] v>
    { a = Conv (x, w) r = Relu (a)
      e = Conv <group = 2> (r, k) s = Sigmoid (e)
      d = Conv <group = 4, pads = [1, 1, 1, 1]> (s, k2, b2) q = Relu (d)
      y = Conv (q, v) }""",
    "a e d",
)
case(
    "grouped_conv_of_one_output_each",  # nothing may leave its outputs, and its inputs leave evenly
    """g (float[N, 3, 6, 6] x) => (float[N, 4, 6, 6] y)
    <float[12, 3, 1, 1] w, float[3, 4, 1, 1] k, float[4, 3, 1, 1] v>
    { a = Conv (x, w) d = Conv <group = 3> (a, k) y = Conv (d, v) }""",
)
case(
    "grouped_conv_weight_used_twice",
    """g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y)
    <float[8, 8, 1, 1] w, float[8, 4, 1, 1] k>
    { a = Conv (x, w) d = Conv <group = 2> (a, k) y = Conv <group = 2> (d, k) }""",
    "",
    "the weight of a grouped Conv is shared",
)
case(
    "grouped_conv_1d_residual",
    """g (float[N, 6, 9] x) => (float[N, 4, 9] y)
    <float[12, 6, 1] w, float[12] b, float[12, 6, 3] k, float[12] c, float[4, 12, 1] v>
    { a = Conv (x, w, b)
      d = Conv <group = 2, pads = [1, 1]> (a, k, c) r = Relu (d)
      s = Add (a, r)
      y = Conv (s, v) }""",
    "a d",
)
case(
    "conv_transpose_depthwise",
    """g (float[N, 3, 4, 4] x) => (float[N, 4, 8, 8] y)
    <float[10, 3, 1, 1] w, float[10] b, float[10, 1, 2, 2] k, float[10] c, float[4, 10, 1, 1] v>
    { a = Conv (x, w, b) u = ConvTranspose <group = 10, strides = [2, 2]> (a, k, c) y = Conv (u, v) }""",
)
