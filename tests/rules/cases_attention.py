"""Fused attention and other fused operators: heads leave whole, normalised channels stay."""

from __future__ import annotations

from rules.cases import case, conv, dense

SEQUENCES = ({"N": 1, "S": 3, "T": 5}, {"N": 3, "S": 4, "T": 2})


def attention(body: str, more: str = "", sizes: tuple[int, int, int] = (12, 12, 20)) -> str:
    """MatMuls q, k, v of the given widths over (N, S, 6) and (N, T, 7), `body` to (N, S, width of v), MatMul y of 3."""
    q, k, v = sizes
    return f"""g (float[N, S, 6] x, float[N, T, 7] m) => (float[N, S, 3] y)
    <float[6, {q}] wq, float[{q}] bq, float[7, {k}] wk, float[7, {v}] wv, float[20, 3] wo{", " + more if more else ""}>
    {{ p = MatMul (x, wq)
       q = Add (p, bq)
       k = MatMul (m, wk)
       v = MatMul (m, wv)
       {body}
       y = MatMul (u, wo) }}"""


MHA = "u = com.microsoft.MultiHeadAttention <num_heads = 4> "
case("mha", attention(MHA + "(q, k, v)"), "p k v", sizes=SEQUENCES)
case(
    "mha_with_bias_scaled",
    attention(
        "u = com.microsoft.MultiHeadAttention <num_heads = 4, scale = 0.7> (q, k, v, b)",
        "float[44] b",
    ),
    "p k v",
    sizes=SEQUENCES,
)
case(
    "mha_masked_by_position_and_by_head",
    attention(
        """j = MatMul (q, one)
           l = MatMul (k, two)
           t = Transpose <perm = [0, 2, 1]> (l)
           s = MatMul (j, t)
           n = Unsqueeze (s, first)
           """
        + MHA
        + "(q, k, v, , , n)",
        "float[12, 1] one, float[12, 1] two, int64[1] first = {1}",
    ),
    "p k v",
    sizes=SEQUENCES,
)
case(
    "mha_mask_from_a_layer_per_head",
    """g (float[N, 5, 6] x, float[N, 4, 5, 5] z) => (float[N, 5, 3] y)
    <float[6, 12] wq, float[6, 12] wk, float[6, 20] wv, float[20, 3] wo, float[4, 4, 1, 1] wz>
    { q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      n = Conv (z, wz)
      u = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v, , , n)
      y = MatMul (u, wo) }""",
    "q k v n",
)
case(
    "mha_keys_of_an_input_stay",
    """g (float[N, S, 6] x, float[N, T, 12] m) => (float[N, S, 3] y)
    <float[6, 12] wq, float[12, 20] wv, float[20, 3] wo>
    { q = MatMul (x, wq)
      v = MatMul (m, wv)
      u = com.microsoft.MultiHeadAttention <num_heads = 4> (q, m, v)
      y = MatMul (u, wo) }""",
    "",
    "queries, keys or values have no channels here",
    sizes=SEQUENCES,
)
case(
    "mha_with_present_keys_stays",
    """g (float[N, S, 6] x) => (float[N, S, 3] y, float[N, 4, S, 3] pk)
    <float[6, 12] wq, float[6, 12] wk, float[6, 20] wv, float[20, 3] wo>
    { q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      u, pk, pv = com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)
      y = MatMul (u, wo) }""",
    "",
    "keys and values are packed or used outside",
    sizes=SEQUENCES,
)
case(
    "rotary_then_mha",
    attention(
        """qr = com.microsoft.RotaryEmbedding <num_heads = 3> (q, at, cos, sin)
           u = com.microsoft.MultiHeadAttention <num_heads = 3> (qr, k, v)""",
        "int64[1] at = {0}, float[9, 2] cos, float[9, 2] sin",
        (12, 12, 18),
    )
    .replace("float[20, 3] wo", "float[18, 3] wo")
    .replace("[N, S,", "[N, 5,"),
    "p k v",
    sizes=({"N": 1, "T": 5}, {"N": 3, "T": 2}),
)
ATT = {"opset": 23, "ir": 10, "sizes": SEQUENCES}
case(
    "attention_3d",
    attention("u = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)"),
    "p k v",
    **ATT,
)
case(
    "attention_3d_grouped_queries",
    attention(
        "u = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1, softcap = 3.0> (q, k, v)", sizes=(12, 6, 10)
    ),
    "p k v",
    **ATT,
)
case(
    "attention_3d_unequal_mask_of_rank_3",
    attention("u = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v, mask)", "float[4, 5, 3] mask", (12, 6, 10))
    .replace("[N, S,", "[N, 5,")
    .replace("[N, T,", "[N, 3,"),
    "p k v",
    opset=23,
    ir=10,
)
FOUR = """qh = Reshape (q, to_q) kh = Reshape (k, to_k) vh = Reshape (v, to_v)
          qt = Transpose <perm = [0, 2, 1, 3]> (qh)
          kt = Transpose <perm = [0, 2, 1, 3]> (kh)
          vt = Transpose <perm = [0, 2, 1, 3]> (vh)
          {body}
          ut = Transpose <perm = [0, 2, 1, 3]> (a)
          u = Reshape (ut, back)"""
TO = (
    "int64[4] to_q = {{0, 0, 4, 4}}, int64[4] to_k = {{0, 0, {kv}, 4}}, int64[4] to_v = {{0, 0, {kv}, 5}},"
    " int64[3] back = {{0, 0, -1}}"
)
case(
    "attention_4d",
    attention(FOUR.format(body="a = Attention (qt, kt, vt)"), TO.format(kv=4), (16, 16, 20)),
    "p k v",
    **ATT,
)
case(
    "attention_4d_grouped_queries_turned",
    attention(
        FOUR.format(
            body="""qr = RotaryEmbedding (qt, cos, sin, at)
                    kr = RotaryEmbedding <interleaved = 1> (kt, cos, sin, at)
                    a = Attention (qr, kr, vt)"""
        ),
        TO.format(kv=2) + ", float[9, 2] cos, float[9, 2] sin, int64[2, 4] at = {0, 1, 2, 3, 0, 1, 2, 3}",
        (16, 8, 10),
    )
    .replace("[N, S,", "[2, 4,")
    .replace("[N, T,", "[2, 4,"),
    "p k v",
    opset=23,
    ir=10,
    sizes=({},),
)
case(
    "attention_3d_turned",
    attention(
        """qr = RotaryEmbedding <num_heads = 4> (q, cos, sin)
           u = Attention <q_num_heads = 4, kv_num_heads = 4> (qr, k, v)""",
        "float[2, 4, 2] cos, float[2, 4, 2] sin",
        (16, 16, 20),
    )
    .replace("[N, S,", "[2, 4,")
    .replace("[N, T,", "[2, 4,"),
    "p k v",
    opset=23,
    ir=10,
    sizes=({},),
)
case(
    "attention_with_present_keys_stays",
    """g (float[N, S, 6] x) => (float[N, S, 3] y, float[N, 4, S, 3] pk)
    <float[6, 12] wq, float[6, 12] wk, float[6, 20] wv, float[20, 3] wo>
    { q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      u, pk, pv = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)
      y = MatMul (u, wo) }""",
    "",
    "keys or scores are used outside",
    **ATT,
)
PACKED = """g (float[N, S, 6] x) => (float[N, S, 3] y)
    <float[6, 8] w, float[8, 24] wa, float[24] b, float[8, 3] v{more}>
    {{ a = MatMul (x, w)
       {body}
       y = MatMul (u, v) }}"""
case(
    "attention_of_microsoft_stays",
    PACKED.format(more="", body="u = com.microsoft.Attention <num_heads = 4> (a, wa, b)"),
    "",
    r"heads stay \(Attention\)",
    sizes=SEQUENCES,
)
case("gelu_of_microsoft", conv("r = com.microsoft.Gelu (a) u = com.microsoft.QuickGelu <alpha = 1.5> (r)"))
case(
    "gelu_with_bias",
    dense(
        "r = com.microsoft.BiasGelu (a, d) s = com.microsoft.FastGelu (r) u = com.microsoft.FastGelu (s, e)",
        "float[10] d, float[10] e",
    ),
)
case(
    "rms_norm_of_channels_stays",
    dense("u = RMSNormalization (a, ga)", "float[10] ga"),
    "",
    "RMSNormalization works along this axis",
    opset=23,
    ir=10,
)
case(
    "rms_norm_over_space",
    conv("u = RMSNormalization <axis = 2> (a, ga)", "float[8, 8] ga"),
    "a",
    "whose axes stay whole",
    opset=23,
    ir=10,
)
case(
    "skip_layer_norm_stays",
    PACKED.format(
        more=", float[8] ga, float[8] be",
        body="n = MatMul (x, w) u = com.microsoft.SkipLayerNormalization (a, n, ga, be)",
    ),
    "",
    "SkipLayerNormalization normalises over the channels",
    sizes=SEQUENCES,
)
case(
    "skip_simplified_layer_norm_stays",
    PACKED.format(
        more=", float[8] ga",
        body="n = MatMul (x, w) u = com.microsoft.SkipSimplifiedLayerNormalization (a, n, ga)",
    ),
    "",
    "SimplifiedLayerNormalization normalises over the channels",
    sizes=SEQUENCES,
)
case(
    "fused_matmul",
    PACKED.format(
        more=", float[8, 10] k, float[10] kb, float[8, 10] k2",
        body="""e = com.microsoft.FusedMatMul <alpha = 0.5> (a, k)
                f = Add (e, kb)
                r = Relu (f)
                u = com.microsoft.FusedMatMul <transB = 1, alpha = -1.5> (r, k2)""",
    ),
    "a e u",
    sizes=SEQUENCES,
)
case(
    "fused_matmul_turned_stays",
    PACKED.format(more="", body="u = com.microsoft.FusedMatMul <transA = 1> (a, a)").replace(
        "float[8, 3] v", "float[8, 3] v"
    ),
    "",
    "a product of two activations, or a transposed one",
    sizes=SEQUENCES,
)
case(
    "fused_conv_stays",
    conv('u = com.microsoft.FusedConv <activation = "Relu"> (a, k, d)', "float[10, 10, 1, 1] k, float[10] d"),
    "",
    "FusedConv hides an activation",
)
case(
    "fused_gemm_stays",
    dense('u = com.microsoft.FusedGemm <activation = "Relu"> (a, k, d)', "float[10, 10] k, float[10] d"),
    "",
    "FusedGemm hides an activation",
)
case(
    "group_query_attention_stays",
    """g (float[N, 1, 6] x, float[N, 2, 3, 16] pk, float[N, 2, 3, 16] pv) => (float[N, 1, 3] y)
    <float[6, 64] wq, float[6, 32] wk, float[6, 32] wv, float[64, 3] wo, int32[1] last = {3}, int32 all = {4},
     int64[1] first = {0}>
    { q = MatMul (x, wq)
      k = MatMul (x, wk)
      v = MatMul (x, wv)
      shape = Shape <start = 0, end = 1> (x)
      ends = Expand (last, shape)
      u, ck, cv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2> (q, k, v, pk, pv, ends, all)
      y = MatMul (u, wo) }""",
    "",
    r"heads stay \(GroupQueryAttention\)",
)
case(
    "quantised_attention_stays",
    PACKED.format(
        more=", int8[8, 24] wi, float step = {0.02}, float tiny, uint8 zero = {128}",
        body="""q = QuantizeLinear (a, step, zero)
                u = com.microsoft.QAttention <num_heads = 4> (q, wi, b, step, tiny, , zero)""",
    ),
    "",
    r"heads stay \(QAttention\)",
    sizes=SEQUENCES,
)
