"""Recurrent layers: their input width may shrink, their hidden state not."""

from __future__ import annotations

from rules.cases import case


def recurrent(op: str, inner: str, more: str, inputs: str = "u, wx, wh", outputs: str = "s, h", ends: str = "") -> str:
    """Gemm-like MatMul a of 10 channels over (N, T, 6), `inner` and a Transpose to (T, N, 10), a layer, a MatMul y."""
    return f"""g (float[N, T, 6] x) => (float[P, Q, R] y)
    <float[6, 10] w, float[10] b, float[5, 3] v, int64[3] flat = {{0, 0, -1}}, {more}>
    {{ m = MatMul (x, w)
       a = Add (m, b)
       {inner}
       u = Transpose <perm = [1, 0, 2]> (e)
       [layer] {outputs} = {op} ({inputs})
       {ends or "q = Transpose <perm = [0, 2, 1, 3]> (s) p = Reshape (q, flat) y = MatMul (p, v)"} }}"""


BOTH = "float[2, {g}, 10] wx, float[2, {g}, 5] wh, float[2, {h}] bias"
SIZES = ({"N": 1, "T": 4}, {"N": 3, "T": 7})

case(
    "lstm",
    recurrent("LSTM <hidden_size = 5>", "e = Relu (a)", "float[1, 20, 10] wx, float[1, 20, 5] wh"),
    "m",
    "Transpose|hidden state|LSTM",
    sizes=SIZES,
)
case(
    "lstm_both_directions_with_bias_and_peepholes",
    recurrent(
        'LSTM <hidden_size = 5, direction = "bidirectional">',
        "e = Tanh (a)",
        BOTH.format(g=20, h=40) + ", float[2, 15] peep, float[10, 3] vv",
        "u, wx, wh, bias, , , , peep",
        "s, h, k",
        "q = Transpose <perm = [0, 2, 1, 3]> (s) p = Reshape (q, flat) y = MatMul (p, vv)",
    ),
    "m",
    "hidden state of LSTM stays whole",
    sizes=SIZES,
)
case(
    "gru_linear_before_reset",
    recurrent(
        "GRU <hidden_size = 5, linear_before_reset = 1>",
        "e = LeakyRelu <alpha = 0.1> (a)",
        "float[1, 15, 10] wx, float[1, 15, 5] wh, float[1, 30] bias",
        "u, wx, wh, bias",
    ),
    "m",
    "hidden state of GRU stays whole",
    sizes=SIZES,
)
case(
    "gru_only_the_last_state_in_reverse",
    recurrent(
        'GRU <hidden_size = 5, direction = "reverse">',
        "e = Relu (a)",
        "float[1, 15, 10] wx, float[1, 15, 5] wh",
        outputs=", h",
        ends="y = MatMul (h, v)",
    ),
    "m",
    sizes=SIZES,
    refused="hidden state of GRU stays whole",
)
case(
    "rnn_reads_two_joined_layers",
    recurrent(
        "RNN <hidden_size = 5>",
        "m2 = MatMul (x, w2) r = Relu (m2) e = Concat <axis = 2> (a, r)",
        "float[6, 4] w2, float[1, 5, 14] wx, float[1, 5, 5] wh",
    ),
    "m m2",
    sizes=SIZES,
    refused="hidden state of RNN stays whole",
)
case(
    "rnn_then_rnn_stays_whole",
    recurrent(
        "RNN <hidden_size = 5>",
        "e = Relu (a)",
        "float[1, 5, 10] wx, float[1, 5, 5] wh, float[1, 5, 5] wx2, float[1, 5, 5] wh2, int64[1] one = {1}",
        ends="q = Squeeze (s, one) t, k = RNN <hidden_size = 5> (q, wx2, wh2) z = Squeeze (t, one) y = MatMul (z, v)",
    ),
    "m",
    sizes=SIZES,
    refused="hidden state of RNN stays whole",
)
case(
    "lstm_starts_from_a_layer",
    """g (float[N, T, 6] x, float[1, N, 6] s) => (float[P, Q, R] y)
    <float[6, 10] w, float[6, 5] w0, float[1, 20, 10] wx, float[1, 20, 5] wh, float[5, 3] v>
    { a = MatMul (x, w)
      u = Transpose <perm = [1, 0, 2]> (a)
      h0 = MatMul (s, w0)
      [layer] , h, = LSTM <hidden_size = 5> (u, wx, wh, , , h0, h0)
      y = MatMul (h, v) }""",
    "a",
    "hidden state of LSTM stays whole",
    sizes=SIZES,
)
case(
    "lstm_sequence_of_channels_freezes",
    """g (float[N, 3, 8] x) => (float[P, Q, R] y)
    <float[6, 3, 1] w, float[6] b, float[1, 20, 8] wx, float[1, 20, 5] wh, float[5, 3] v>
    { a = Conv (x, w, b)
      u = Transpose <perm = [1, 0, 2]> (a)
      [layer] , h, = LSTM <hidden_size = 5> (u, wx, wh)
      y = MatMul (h, v) }""",
    "",
    "LSTM mixes this axis",
)
