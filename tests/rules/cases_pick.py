"""Cases for `rules/pick.py`."""

from __future__ import annotations

from rules.cases import case, conv, dense, dynamic

_TURNED = "int64[10] i = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8}"
_ONE = {"last": "y = Conv (u, q)"}
case("gather_turned_channels", conv("r = Relu (a) u = Gather <axis = 1> (r, i)", _TURNED))
case("gather_turned_features", dense("u = Gather <axis = -1> (a, i)", _TURNED))
case("gather_int32_indices", dense("u = Gather <axis = 1> (a, i)", _TURNED.replace("int64", "int32")), opset=9)
case(
    "gather_counts_from_the_end",
    dense("u = Gather <axis = 1> (a, i)", "int64[10] i = {-1, -2, 3, -4, 5, 4, 3, -8, 1, -10}"),
)
case(
    "gather_some_channels",
    conv("u = Gather <axis = 1> (a, i)", "int64[4] i = {7, 2, -1, 3}, float[4, 4, 1, 1] q", **_ONE),
)
case(
    "gather_channels_twice",
    conv("u = Gather <axis = 1> (a, i)", "int64[6] i = {7, 2, 2, 3, 7, 7}, float[4, 6, 1, 1] q", **_ONE),
)
case(
    "gather_two_parts",
    conv(
        "d = Gather <axis = 1> (a, i) e = Gather <axis = 1> (a, j) r = Sigmoid (d) u = Mul (r, e)",
        "int64[5] i = {0, 2, 4, 6, 8}, int64[5] j = {1, 3, 5, 7, 9}, float[4, 5, 1, 1] q",
        **_ONE,
    ),
)
case(
    "gather_from_joined",
    conv(
        "e = Conv <pads = [1, 1, 1, 1]> (x, k) j = Concat <axis = 1> (a, e) r = Relu (j) u = Gather <axis = 1> (r, i)",
        "float[4, 3, 3, 3] k, int64[10] i = {13, 0, 12, 1, 11, 2, 10, 3, 9, 4}",
    ),
    "a e",
)
case(
    "gather_a_matrix_of_channels",
    conv(
        "d = Gather <axis = 1> (a, i) r = ReduceSum <keepdims = 0> (d, ax) u = Relu (r)",
        "int64[2, 5] i = {0, 2, 4, 6, 8, 1, 3, 5, 7, 9}, int64[1] ax = {1}, float[4, 5, 1, 1] q",
        **_ONE,
    ),
)
case(
    "gather_matrix_flattened_again",
    dense(
        "d = Gather <axis = 1> (a, i) r = Relu (d) u = Flatten (r)",
        "int64[2, 5] i = {0, 2, 4, 6, 8, 1, 3, 5, 7, 9}",
    ),
)
case(
    "gather_indices_used_twice", conv("r = Gather <axis = 1> (a, i) s = Relu (r) u = Gather <axis = 1> (s, i)", _TURNED)
)
case("gather_indices_are_an_output", dense("u = Gather <axis = 1> (a, i)", _TURNED, out="float[N, 4] y, int64[10] i"))
_LONG = "d = Gather <axis = 1> (a, i) r = Relu (a) e = Gather <axis = 1> (r, {}) u = Add (d, e)"
_MEAN = {"last": "y = ReduceMean <axes = [1], keepdims = 0> (u)", "out": "float[N, 32] y"}
case(
    "gather_long_indices_shared",
    dense(_LONG.format("i"), "int64[33, 32] i = {" + ", ".join(str(7 * n % 10) for n in range(1056)) + "}", **_MEAN),
    "",
    "the indices of Gather are also used elsewhere",
)
case(
    "gather_indices_are_an_input",
    dense("u = Gather <axis = 1> (a, i)").replace("6] x)", "6] x, int64[10] i)"),
    "",
    "Gather picks from this axis",
)
case(
    "gather_a_single_channel_beside_all",
    conv(
        "d = Gather <axis = 1> (a, i) s = Sigmoid (d) t = Unsqueeze (s, ax) u = Mul (a, t)",
        "int64 i = {4}, int64[1] ax = {1}",
    ),
    refused="Gather takes a single channel",
)
case(
    "gather_a_single_channel_with_its_axis",
    conv("d = Gather <axis = 1> (a, i) s = Sigmoid (d) u = Mul (a, s)", "int64[1] i = {-4}"),
    refused="Gather takes a single channel",
)
case(
    "gather_with_one_index_of_space_and_channels",
    dense(
        "r = Reshape (a, s) d = Gather <axis = 1> (r, i) e = Gather <axis = 1> (r, j) u = Add (d, e)",
        "int64[3] s = {-1, 2, 5}, int64 i = {0}, int64 j = {1}, float[5, 4] q",
        last="y = Gemm (u, q)",
    ),
)
case(
    "gather_with_one_index_from_the_longer_axis",
    dense(
        "r = Reshape (a, s) d = Gather <axis = 1> (r, i) e = Gather <axis = 1> (r, j) u = Add (d, e)",
        "int64[3] s = {-1, 4, 3}, int64[1] i = {0}, int64[1] j = {3}, float[3, 4] q",
        last="z = MatMul (u, q) y = ReduceMean <axes = [1], keepdims = 0> (z)",
    )
    .replace("10]", "12]")
    .replace("[10, 4]", "[12, 4]"),
)
case(
    "gather_fused_attention",
    """g (float[N, 5, 6] x) => (float[N, 5, 4] y)
    <float[6, 36] w, int64[5] s = {0, 0, 3, 3, 4}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2},
     int64[3] z = {0, 0, 12}, float[12, 4] v>
    { a = MatMul (x, w)
      h = Reshape (a, s)
      t = Transpose <perm = [2, 0, 3, 1, 4]> (h)
      q = Gather <axis = 0> (t, i0)
      k = Gather <axis = 0> (t, i1)
      l = Gather <axis = 0> (t, i2)
      kt = Transpose <perm = [0, 1, 3, 2]> (k)
      d = MatMul (q, kt)
      p = Softmax <axis = -1> (d)
      o = MatMul (p, l)
      r = Transpose <perm = [0, 2, 1, 3]> (o)
      u = Reshape (r, z)
      y = MatMul (u, v) }""",
)
case(
    "gather_fused_attention_with_a_gate",
    """g (float[N, 5, 6] x) => (float[N, 5, 4] y)
    <float[6, 24] w, int64[5] s = {0, 0, 4, 3, 2}, int64 i0 = {0}, int64 i1 = {1}, int64 i2 = {2},
     int64[3] z = {0, 0, 6}, int64 i3 = {3}, float[6, 4] v>
    { a = MatMul (x, w)
      h = Reshape (a, s)
      t = Transpose <perm = [2, 0, 3, 1, 4]> (h)
      q = Gather <axis = 0> (t, i0)
      k = Gather <axis = 0> (t, i1)
      l = Gather <axis = 0> (t, i2)
      kt = Transpose <perm = [0, 1, 3, 2]> (k)
      d = MatMul (q, kt)
      p = Softmax <axis = -1> (d)
      o = MatMul (p, l)
      b = Gather <axis = 0> (t, i3)
      m = Mul (o, b)
      r = Transpose <perm = [0, 2, 1, 3]> (m)
      u = Reshape (r, z)
      y = MatMul (u, v) }""",
)
case(
    "gather_residual_of_turned",
    dense("g0 = Gather <axis = 1> (a, i) u = Add (a, g0)", _TURNED),
)
case(
    "gather_from_a_longer_table",
    """g (int64[N, 5] i) => (float[N, 5, 4] y)
    <float[7, 6] k, float[6, 9] w, float[9, 6] o, float[6, 4] v>
    { x = Gather (k, i)
      a = MatMul (x, w)
      r = Relu (a)
      e = MatMul (r, o)
      s = Add (x, e)
      y = MatMul (s, v) }""",
    "x a e",
    "Gather picks from this axis",
)

case(
    "gather_elements_along_space",
    conv("q, i = TopK <axis = 2> (a, k) r = Relu (a) u = GatherElements <axis = 2> (r, i)", "int64[1] k = {3}"),
)
case(
    "gather_elements_of_channels",
    conv(
        "q, i = TopK <axis = 1> (a, k) u = GatherElements <axis = 1> (a, i)",
        "int64[1] k = {3}, float[4, 3, 1, 1] p",
        last="y = Conv (u, p)",
    ),
    "",
    "works along this axis",
)
case(
    "gather_elements_of_channels_by_constants",
    dense(
        "u = GatherElements <axis = 1> (a, i)",
        "int64[2, 3] i = {3, 1, 9, 0, 3, 2}, float[3, 4] q",
        last="y = Gemm (u, q)",
    ).replace("float[N,", "float[2,"),
    "",
    "GatherElements works along this axis",
    sizes=({},),
)
case(
    "scatter_elements_of_channels_by_constants",
    dense("u = ScatterElements <axis = 1> (a, i, h)", "int64[2, 3] i = {3, 1, 9, 0, 3, 2}, float[2, 3] h").replace(
        "float[N,", "float[2,"
    ),
    "",
    "ScatterElements works along this axis",
    sizes=({},),
)
case(
    "gather_elements_with_constant_indices",
    dense(
        "u = GatherElements <axis = 0> (a, i)", "int64[3, 10] i = {" + ", ".join(["0"] * 30) + "}", out="float[3, 4] y"
    ),
    "",
    "meets an axis without channels",
    sizes=({"N": 2},),
)
case(
    "gather_elements_of_a_part",
    dense(
        "u = GatherElements <axis = 0> (a, i)",
        "int64[3, 8] i = {" + ", ".join(["0"] * 24) + "}, float[8, 4] q",
        last="y = Gemm (u, q)",
        out="float[3, 4] y",
    ),
    "",
    "GatherElements treats a part of the data only",
    sizes=({"N": 2},),
)
case(
    "scatter_elements_along_space",
    conv(
        "q, i = TopK <axis = 3> (a, k) h = Neg (q) u = ScatterElements <axis = 3> (a, i, h)",
        "int64[1] k = {3}",
    ),
)
case(
    "scatter_elements_of_channels",
    dense("q, i = TopK (a, k) h = Neg (q) u = ScatterElements <axis = 1> (a, i, h)", "int64[1] k = {3}"),
    "",
    "works along this axis",
)
case(
    "scatter_9",
    dense("u = Scatter <axis = 1> (a, i, h)", "int64[1, 2] i = {3, 4}, float[1, 2] h"),
    "",
    "Scatter reads",
    opset=9,
)
case(
    "scatter_nd_into_channels",
    conv(
        "p = Transpose <perm = [1, 0, 2, 3]> (a) s = ScatterND (p, i, h) u = Transpose <perm = [1, 0, 2, 3]> (s)",
        "int64[2, 1] i = {3, 4}, float[2, 2, 8, 8] h",
    ).replace("float[N,", "float[2,"),
    "",
    "ScatterND reads every channel",
    sizes=({},),
)
case(
    "gather_nd_leaves_channels",
    """g (float[N, 5, 6] x) => (float[3, 4] y) <float[6, 10] w, int64[3, 2] i = {0, 1, 0, 4, 0, -2}, float[10, 4] v>
    { a = MatMul (x, w)
      u = GatherND (a, i)
      y = MatMul (u, v) }""",
)
case(
    "gather_nd_batch_leaves_channels",
    """g (float[2, 5, 6] x) => (float[2, 4] y) <float[6, 10] w, int64[2, 1] i = {1, 4}, float[10, 4] v>
    { a = MatMul (x, w)
      r = Relu (a)
      u = GatherND <batch_dims = 1> (r, i)
      y = MatMul (u, v) }""",
    sizes=({},),
)
case(
    "gather_nd_of_channels",  # as torch.onnx writes x[:, i]
    conv(
        "t = Transpose <perm = [1, 0, 2, 3]> (a) s = GatherND (t, i) u = Transpose <perm = [1, 0, 2, 3]> (s)",
        "int64[5, 1] i = {3, -1, 0, 4, 8}, float[4, 5, 1, 1] q",
        **_ONE,
    ),
)
case(
    "gather_nd_of_channels_at_a_place",
    conv(
        "t = Transpose <perm = [1, 2, 3, 0]> (a) s = GatherND (t, i) u = Transpose <perm = [2, 0, 1]> (s)",
        "int64[2, 2] i = {3, 0, 4, 7}, float[4, 2, 1] q",
        last="y = Conv (u, q)",
        out="float[N, 4, P] y",
    ),
    "",
    "GatherND picks from this axis",
)
case(
    "gather_nd_of_channels_by_an_input",
    conv("t = Transpose <perm = [1, 0, 2, 3]> (a) s = GatherND (t, i) u = Transpose <perm = [1, 0, 2, 3]> (s)").replace(
        "8] x)", "8] x, int64[10, 1] i)"
    ),
    "",
    "GatherND picks from this axis",
)
case("topk_of_channels", dense("u, i = TopK (a, k)", "int64[1] k = {10}"), "", "TopK works along this axis")
case("topk_of_space", conv("u, i = TopK <axis = 2, largest = 0> (a, k)", "int64[1] k = {3}"))
case("topk_9", conv("u, i = TopK <axis = -1, k = 3> (a)"), opset=9)
case(
    "topk_indices_used", conv("q, i = TopK <axis = 2> (a, k) f = Cast <to = 1> (i) u = Add (q, f)", "int64[1] k = {3}")
)
case("compress_space", conv("u = Compress <axis = 2> (a, k)", "bool[8] k = {1, 0, 1, 1, 0, 0, 1, 0}"))
case(
    "compress_channels",
    conv("u = Compress <axis = 1> (a, k)", "bool[10] k = {1, 0, 1, 1, 0, 0, 1, 0, 0, 0}, float[4, 4, 1, 1] q", **_ONE),
    "",
    "Compress works along this axis",
)
case(
    "compress_flat",
    dense(
        "h = Compress (a, k) u = Reshape (h, s)", "bool[10] k = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, int64[2] s = {1, 10}"
    ).replace("float[N,", "float[1,"),
    "",
    "Compress works along this axis",
    sizes=({},),
)
_SEQ = """g (float[5, 2, 6] x) => (float[5, 2, 4] y)
    <float[6, 10] w, int64[2] l = {3, 5}, int64[10] m = {2, 1, 1, 5, 5, 4, 3, 2, 1, 5}, float[10, 4] v>
    { a = MatMul (x, w)
      u = ReverseSequence <BODY> (a, LENGTHS)
      y = MatMul (u, v) }"""
case("reverse_sequence", _SEQ.replace(" <BODY>", "").replace("LENGTHS", "l"), sizes=({},))
case(
    "reverse_sequence_of_channels",
    _SEQ.replace("BODY", "time_axis = 0, batch_axis = 1")
    .replace("LENGTHS", "l")
    .replace("(a, l)", "(t, m)")
    .replace("u = Rev", "t = Transpose <perm = [0, 2, 1]> (a) r = Rev")
    .replace("y = Mat", "u = Transpose <perm = [0, 2, 1]> (r) y = Mat"),
    "",
    "ReverseSequence works along this axis",
    sizes=({},),
)
case("trilu_beside_channels", conv("u = Trilu <upper = 0> (a)"))
case("trilu_of_channels", dense("u = Trilu (a)"), "", "Trilu works along this axis")
case(
    "one_hot",
    dense(
        "h = ArgMax <axis = 0> (a) u = OneHot (h, d, k)",
        "int64 d = {10}, float[2] k = {0, 1}",
        out="float[P, Q, 4] y",
        last="y = MatMul (u, v)",
    ),
    "",
    "OneHot reads every channel",
)
case(
    "non_zero",
    dense("r = Relu (a) n = NonZero (r) f = Cast <to = 1> (n) s = ReduceSum <keepdims = 1> (f) u = Mul (r, s)"),
    "",
    "NonZero reads every channel",
)
case(
    "unique", dense("q = Unique (a) s = ReduceMax <keepdims = 1> (q) u = Sub (a, s)"), "", "Unique reads every channel"
)
case("eye_like", dense("e = EyeLike <dtype = 1> (a) u = Add (a, e)"), "", "EyeLike reads every channel")
case(
    "range_of_channels",
    dynamic(
        "s = Shape (t) n1 = Gather (s, one) q = Range (z, n1, one) f = Cast <to = 1> (q) p = Reshape (f, col) "
        "u = Add (t, p)",
        "int64 z = {0}, int64[3] col = {-1, 1, 1}",
    ),
    "",
    "its number of channels is computed with",
)
case(
    "constant_of_shape",
    dense("s = Shape (a) z = ConstantOfShape <value = float[1] {0.5}> (s) u = Add (a, z)"),
    "",
    "its number of channels is computed with",
)
case(
    "non_max_suppression",
    """g (float[1, 6, 3] x) => (int64[P, 3] y)
    <float[3, 8] w, float[8, 4] v, float[3, 1] k, int64 n = {3}, float t = {0.5}>
    { a = MatMul (x, w)
      boxes = MatMul (a, v)
      s = MatMul (x, k)
      scores = Transpose <perm = [0, 2, 1]> (s)
      y = NonMaxSuppression (boxes, scores, n, t) }""",
    "a",
    "NonMaxSuppression reads every channel",
    sizes=({},),
)


def _strided(listed: str, last: str = "q = Flatten (p) y = Gemm (q, v)") -> str:
    """Average pool, then as_strided as torch's newer exporter writes it."""
    return f"""g (float[N, 3, 4, 4] x) => (float[N, 5] y)
    <float[10, 3, 1, 1] w, float[10, 5] v, int64[1] flat = {{-1}}, int64 zero = {{0}}, int64 one = {{1}},
     int64 stride = {{10}}, int64[3] behind = {{1, 2, 3}}, int64[1, 10, 1, 1] listed = {{{listed}}}>
    {{ a = Conv (x, w) m = GlobalAveragePool (a) f = Reshape (m, flat)
      s = Shape <start = 0, end = 1> (x) n = Squeeze (s) r = Range (zero, n, one) k = Mul (r, stride)
      t = Unsqueeze (k, behind) i = Add (t, listed)
      p = Gather <axis = 0> (f, i) {last} }}"""


case("gather_as_strided_of_all", _strided("0, 1, 2, 3, 4, 5, 6, 7, 8, 9"))
case("gather_as_strided_of_other_order", _strided("1, 0, 2, 3, 4, 5, 6, 7, 8, 9"), "", "Gather picks from this axis")


case(
    "gather_embedding",
    """g (int64[N, 5] ids) => (float[N, 5, 4] y) <float[20, 10] w, float[10, 4] v>
    { a = Gather <axis = 0> (w, ids) u = Relu (a) y = MatMul (u, v) }""",
)
case(
    "gather_embeddings_and_positions",
    """g (int64[N, 5] ids, int64[N, 5] kinds) => (float[N, 5, 4] y)
    <float[20, 10] w, float[3, 10] w2, float[5, 10] position, float[10, 4] v, float[4] c>
    { a = Gather (w, ids) e = Gather (w2, kinds) s = Add (a, e) t = Add (s, position) u = Tanh (t)
      d = MatMul (u, v) y = Add (d, c) }""",
    "a e",
)
case(
    "gather_tied_embedding",  # the same matrix reads ids and writes scores
    """g (int64[N, 5] ids) => (float[N, 5, 20] y) <float[20, 10] w, float[10, 10] k>
    { a = Gather (w, ids) e = MatMul (a, k) r = Relu (e) s = Add (a, r)
      t = Transpose (w) y = MatMul (s, t) }""",
    "a e",
)
case(
    "gather_embedding_into_gru",
    """g (int64[5, N] ids) => (float[5, 1, N, 4] y) <float[20, 10] w, float[1, 12, 10] k, float[1, 12, 4] r>
    { a = Gather (w, ids) y = GRU <hidden_size = 4> (a, k, r) }""",
)
