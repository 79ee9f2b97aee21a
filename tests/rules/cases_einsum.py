"""Cases for `rules/einsum.py`."""

from __future__ import annotations

from rules.cases import case, conv, dense


def tokens(body: str, more: str = "", last: str = "y = MatMul (u, v)", out: str = "float[N, 5, 4] y") -> str:
    """MatMul a of 10 channels on 5 tokens, `body` from a to u, MatMul y of 4."""
    return f"""g (float[N, 5, 6] x) => ({out})
    <float[6, 10] w, float[10, 4] v{", " + more if more else ""}>
    {{ a = MatMul (x, w)
       {body}
       {last} }}"""


_K, _U = "float[10, 9] k, float[9, 4] q", {"last": "y = MatMul (u, q)"}
for _name, _equation in {
    "dots": "...k,kn->...n",
    "spelled": "bik, kn -> bin",
    "implicit": "bcz,zk",
    "capital": "Bik,kN->BiN",
}.items():
    if _name == "implicit":  # alphabetical: b c k
        _equation = "abz,zk"
    case(f"einsum_{_name}", tokens(f'e = Einsum <equation = "{_equation}"> (a, k) u = Relu (e)', _K, **_U), "a e")
case(
    "einsum_weight_transposed",
    tokens('e = Einsum <equation = "...k,nk->...n"> (a, k) u = Relu (e)', "float[9, 10] k, float[9, 4] q", **_U),
    "a e",
)
case(
    "einsum_weight_first",
    tokens('e = Einsum <equation = "nk,bik->bin"> (k, a) u = Relu (e)', "float[9, 10] k, float[9, 4] q", **_U),
    "a e",
)
case(
    "einsum_implicit_dots",
    dense('e = Einsum <equation = "...j,jk"> (a, k) u = Relu (e)', "float[10, 9] k, float[9, 4] q", "y = Gemm (u, q)"),
    "a e",
)
case(
    "einsum_with_bias",
    tokens('e = Einsum <equation = "bik,kn->bin"> (a, k) f = Add (e, d) u = Relu (f)', _K + ", float[9] d", **_U),
    "a e",
)
case(
    "einsum_dequantised_weight",
    tokens(
        'k = DequantizeLinear (low, scale) e = Einsum <equation = "bik,kn->bin"> (a, k) u = Relu (e)',
        "int8[10, 9] low, float scale = {0.02}, float[9, 4] q",
        **_U,
    ),
    "a e",
)
case(
    "einsum_like_a_conv",
    conv(
        'e = Einsum <equation = "bchw,oc->bohw"> (a, k) f = Add (d, e) u = Relu (f)',
        "float[10, 10] k, float[10, 1, 1] d",
    ),
    "a e",
)
case(
    "einsum_moves_the_new_axis",
    conv(
        'e = Einsum <equation = "bchw,oc->bhwo"> (a, k) r = Relu (e) u = Einsum <equation = "bhwo->bohw"> (r)',
        "float[10, 10] k",
    ),
    "a e",
)
case(
    "einsum_in_one_dimension",
    """g (float[N, 3, 20] x) => (float[N, 4, P] y) <float[8, 3, 3] w, float[8] b, float[9, 8] k, float[4, 9] v>
    { a = Conv (x, w, b)
      e = Einsum <equation = "bic,oi->boc"> (a, k)
      r = Relu (e)
      y = Einsum <equation = "bic,oi->boc"> (r, v) }""",
    "a e",
)
case(
    "einsum_makes_the_first_channels",
    """g (float[N, 5, 6] x) => (float[N, 5, 4] y) <float[6, 10] w, float[10] b, float[10, 4] v>
    { a = Einsum <equation = "bik,kn->bin"> (x, w)
      e = Add (a, b)
      u = Gelu (e)
      y = Einsum <equation = "bik,kn->bin"> (u, v) }""",
    opset=20,
)
case(
    "einsum_over_an_axis_beside_channels",
    """g (float[N, 3, 20] x) => (float[N, 4, 6] y) <float[9, 3, 1] w, float[20, 6] k, float[4, 9, 1] v>
    { a = Conv (x, w)
      r = Relu (a)
      e = Einsum <equation = "bci,ij->bcj"> (r, k)
      y = Conv (e, v) }""",
    "a",
    "graph output",
)
case(
    "einsum_transpose",
    tokens('t = Einsum <equation = "bic->bci"> (a) r = Relu (t) u = Einsum <equation = "bci->bic"> (r)'),
)
case("einsum_identity", dense('u = Einsum <equation = "..."> (a)'))
case("einsum_scales", dense('u = Einsum <equation = "bc,c->bc"> (a, k)', "float[10] k"))
case("einsum_scalar", dense('u = Einsum <equation = "bc,->bc"> (a, k)', "float k = {0.7}"))
case("einsum_gate", dense('e = Gemm (x, k) u = Einsum <equation = "bc,bc->bc"> (a, e)', "float[6, 10] k"), "a e")
case(
    "einsum_gate_with_one_channel",
    dense('e = Gemm (x, k) u = Einsum <equation = "bc,bc->bc"> (a, e)', "float[6, 1] k"),
)
case(
    "einsum_outer_product",
    """g (float[N, 6] x) => (float[N, 4, 3] y)
    <float[6, 10] w, float[6, 9] k, float[10, 4] v, float[9, 3] q>
    { a = Gemm (x, w)
      e = Gemm (x, k)
      o = Einsum <equation = "bi,bj->bij"> (a, e)
      p = Einsum <equation = "bij,ik->bkj"> (o, v)
      y = MatMul (p, q) }""",
    "a e",
)
case(
    "einsum_of_two_activations",
    """g (float[N, 5, 6] x) => (float[N, 5, 5] y) <float[6, 10] w, float[6, 10] k>
    { a = MatMul (x, w)
      e = MatMul (x, k)
      r = Relu (e)
      y = Einsum <equation = "bik,bjk->bij"> (a, r) }""",
    "a e",
)
case(
    "einsum_attention",
    """g (float[N, 5, 6] x) => (float[N, 5, 4] y)
    <float[6, 12] w, float[6, 12] k, float[6, 12] l, int64[4] s = {0, 0, 3, 4}, int64[3] z = {0, 0, 12}, float[12, 4] v>
    { a = MatMul (x, w)
      e = MatMul (x, k)
      f = MatMul (x, l)
      qh = Reshape (a, s)
      kh = Reshape (e, s)
      vh = Reshape (f, s)
      d = Einsum <equation = "bqhd,bkhd->bhqk"> (qh, kh)
      p = Softmax <axis = -1> (d)
      o = Einsum <equation = "bhqk,bkhd->bqhd"> (p, vh)
      u = Reshape (o, z)
      y = MatMul (u, v) }""",
    "a e f",
)
case(
    "einsum_of_three",
    dense(
        'e = Gemm (x, d) u = Einsum <equation = "bi,ij,bj,jk->bk"> (a, k, e, l)',
        "float[10, 9] k, float[6, 9] d, float[9, 5] l, float[5, 4] q",
        last="y = Gemm (u, q)",
    ),
    "a e",
)
case(
    "einsum_diagonal",
    """g (float[N, 6] x) => (float[N, 4] y) <float[6, 10] w, float[6, 10] k, float[10, 4] v>
    { a = Gemm (x, w)
      e = Gemm (x, k)
      o = Einsum <equation = "bi,bj->bij"> (a, e)
      p = Einsum <equation = "bii->bi"> (o)
      y = Gemm (p, v) }""",
    "",
    "Einsum mixes this axis",
)
case(
    "einsum_summed_alone",
    dense(
        's = Einsum <equation = "bc->b"> (a) t = Unsqueeze (s, one) u = Mul (t, q)',
        "float[1, 10] q, int64[1] one = {1}",
    ),
)
case(
    "einsum_summed_against_a_single_channel",
    """g (float[N, 6] x) => (float[N] y) <float[6, 10] w, float[6, 1] k>
    { a = Gemm (x, w)
      e = Gemm (x, k)
      y = Einsum <equation = "bc,bc->b"> (e, a) }""",
)
case(
    "einsum_spreads_a_single_channel_over_a_shared_weight",
    """g (float[N, 6] x) => (float[N, 4] y) <float[6, 10] w, float[6, 1] k, float[10, 4] v>
    { a = Gemm (x, w)
      e = Gemm (x, k)
      p = Einsum <equation = "bc,cn->bn"> (e, v)
      q = Gemm (a, v)
      y = Add (p, q) }""",
    "",
    "Einsum mixes this axis",
)
case(
    "einsum_summed_over_two_axes",
    """g (float[N, 5, 6] x) => (float[N, 4] y) <float[6, 10] w, float[6, 7] k, float[10, 4] v, float[7, 10] q>
    { a = MatMul (x, w)
      e = MatMul (x, k)
      r = MatMul (e, q)
      y = Einsum <equation = "bic,bid,cn->bn"> (a, r, v) }""",
    "a e r",
)
case(
    "einsum_weight_of_heads",
    tokens(
        'e = Einsum <equation = "abc,cde->abde"> (a, k) u = Einsum <equation = "abde,dec->abc"> (e, l)',
        "float[10, 3, 4] k, float[3, 4, 10] l",
    ),
)
case(
    "einsum_batch_of_weights",
    tokens('e = Einsum <equation = "bik,ikn->bin"> (a, k) u = Relu (e)', "float[5, 10, 9] k, float[9, 4] q", **_U),
)
case(
    "einsum_meets_the_input",
    dense('u = Einsum <equation = "bc,bc->bc"> (a, x)')
    .replace("N, 6]", "N, 10]")
    .replace("float[6, 10]", "float[10, 10]"),
    "",
    "meets an axis without channels",
)
case(
    "einsum_contracted_with_the_input",
    """g (float[N, 10] x) => (float[N] y) <float[10, 10] w>
    { a = Gemm (x, w)
      y = Einsum <equation = "bc,bc->b"> (a, x) }""",
    "",
    "meets an axis without channels",
)
