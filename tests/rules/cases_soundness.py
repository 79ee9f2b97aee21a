"""Graphs that once were cut wrongly, or crashed: layouts of some sizes only, numbers from data, shared numbers.

Sizes are odd on purpose: what holds for multiples of 32 alone must not pass.
"""

from __future__ import annotations

from rules.cases import case, dynamic

_ODD = ({"N": 1, "L": 12}, {"N": 2, "L": 4}, {"N": 2, "L": 6})
_SEQUENCE = ({"N": 1, "T": 3}, {"N": 2, "T": 5})

case(
    "rows_of_eight_positions_fit_some_lengths_only",
    """g (float[N, 3, L] x) => (float[N, 4] y)
    <float[8, 3, 1] w, float[8] b, float[8, 8] k, float[8, 4] v, int64[3] t1 = {0, -1, 8}, int64[3] t2 = {0, 8, -1}>
    { a = Conv (x, w, b) r = Reshape (a, t1) m = MatMul (r, k) u = Relu (m) q = Reshape (u, t2)
      s = ReduceMean <axes = [2], keepdims = 0> (q) y = MatMul (s, v) }""",
    "",
    "depends on input size",
    sizes=_ODD,
)
case(
    "slice_of_a_flattened_axis_of_dynamic_length",
    """g (float[N, 3, L] x) => (float[N, 4] y, float[N, 4, P] z)
    <float[10, 3, 1] w, float[10] b, float[20, 4] v, float[4, 10, 1] v2, int64[1] s = {0}, int64[1] e = {20},
     int64[1] ax = {1}>
    { a = Conv (x, w, b) f = Flatten (a) p = Slice (f, s, e, ax) y = MatMul (p, v) z = Conv (a, v2) }""",
    "",
    "an axis whose length depends on the input's size",
    sizes=_ODD,
)
case(
    "gather_from_a_flattened_axis_of_dynamic_length",
    """g (float[N, 3, L] x) => (float[N, 4] y, float[N, 4, P] z)
    <float[10, 3, 1] w, float[10] b, float[3, 4] v, float[4, 10, 1] v2, int64[3] i = {0, 5, 9}>
    { a = Conv (x, w, b) f = Flatten (a) p = Gather <axis = 1> (f, i) y = MatMul (p, v) z = Conv (a, v2) }""",
    "",
    "an axis whose length depends on the input's size",
    sizes=_ODD,
)
case(
    "slice_starts_at_an_input",
    """g (float[N, 6] x, int64[1] s) => (float[N, 4] y, float[N, 1] z)
    <float[6, 10] w, float[10] b, float[10, 4] v, int64[1] e = {10}, int64[1] ax = {1}>
    { a = Gemm (x, w, b) y = MatMul (a, v) p = Slice (a, s, e, ax) z = ReduceSum (p, ax) }""",
    "",
    "the bounds of Slice are not known",
    sizes=(),
)
case(
    "slice_of_positions_at_an_input",  # the other axes pass
    """g (float[N, 3, 8] x, int64[1] s) => (float[N, 4, P] y)
    <float[10, 3, 1] w, float[10] b, float[4, 10, 1] v, int64[1] e = {8}, int64[1] ax = {2}>
    { a = Conv (x, w, b) p = Slice (a, s, e, ax) y = Conv (p, v) }""",
    sizes=(),
)
case(
    "groups_of_a_norm_split_in_halves",  # of two classes one has to stay in each half
    """g (float[N, 3, 4, 4] x) => (float[N, 4, P, Q] y, float[N, 5, P, Q] z)
    <float[8, 3, 1, 1] w, float[8] b, float[8] s, float[8] t, float[4, 4, 1, 1] v, float[5, 4, 1, 1] v2,
     int64[2] halves = {4, 4}>
    { a = Conv (x, w, b) n = GroupNormalization <num_groups = 2> (a, s, t)
      p, q = Split <axis = 1> (n, halves) y = Conv (p, v) z = Conv (q, v2) }""",
    "",
    opset=21,
    ir=10,
)
case(
    "two_heads_split_in_halves",
    """g (float[N, T, 6] x) => (float[N, T, 4] y, float[N, T, 4] z)
    <float[6, 16] w, float[8, 4] v, float[8, 4] v2, int64[4] t = {0, 0, 2, 8}, int64[3] back = {0, 0, 16},
     int64[2] halves = {8, 8}>
    { a = MatMul (x, w) r = Reshape (a, t) q = Transpose <perm = [0, 2, 1, 3]> (r)
      k = Transpose <perm = [0, 2, 3, 1]> (r) s = MatMul (q, k) p = Softmax <axis = -1> (s) o = MatMul (p, q)
      u = Transpose <perm = [0, 2, 1, 3]> (o) f = Reshape (u, back) l, h = Split <axis = 2> (f, halves)
      y = MatMul (l, v) z = MatMul (h, v2) }""",
    "",
    sizes=_SEQUENCE,
)
case(
    "one_channel_picked_three_times",  # it has to stay, the others may leave
    """g (float[N, 3, 4, 4] x) => (float[N, 4, P, Q] y, float[N, 4, P, Q] z)
    <float[10, 3, 1, 1] w, float[10] b, float[4, 3, 1, 1] v, float[4, 10, 1, 1] v2, int64[3] i = {2, 2, 2}>
    { a = Conv (x, w, b) p = Gather <axis = 1> (a, i) y = Conv (p, v) z = Conv (a, v2) }""",
)
case(
    "numbers_in_a_table",  # of rank 2: not traced
    """g (float[N, 6] x) => (float[P, Q] y)
    <float[6, 10] w, float[10] b, float[10, 4] v, int64[3, 2] k = {1, 1, 1, 1, 1, 1}, int64[1] i0 = {0},
     int64[1] m1 = {-1}>
    { a = Gemm (x, w, b) s = Shape (a) t = Mul (s, k) u = Gather <axis = 0> (t, i0) q = Reshape (u, m1)
      r = Reshape (a, q) y = MatMul (r, v) }""",
    "",
    "its number of channels is computed with",
)
case(
    "slice_of_a_shape_without_bounds",
    """g (float[N, 6] x) => (float[N, Q] y) <float[6, 10] w, float[10] b, float[10, 4] v, int64[0] none>
    { s = Shape (x) q = Slice (s, none, none, none) x2 = Reshape (x, q) a = Gemm (x2, w, b) y = MatMul (a, v) }""",
)
case(
    "half_times_four_is_not_twice",  # 5 / 2 x 4 is 8, not 10
    """g (float[N, 6] x) => (float[P, Q] y)
    <float[6, 8] w, float[8] b, float[16, 4] v, int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4},
     int64[1] m1 = {-1}, int64[3] twice = {1, 1, 2}, int64[1] last = {2}>
    { a = Gemm (x, w, b) s = Shape (a) c = Gather <axis = 0> (s, one) h = Div (c, two) k = Mul (h, four)
      u = Unsqueeze (a, last) e = Tile (u, twice) t = Concat <axis = 0> (m1, k) r = Reshape (e, t)
      y = MatMul (r, v) }""",
)
case(
    "as_strided_of_two_with_one_list",
    """g (float[N, 3, 4, 4] x) => (float[N, 5] y)
    <float[10, 3, 1, 1] w, float[10, 3, 1, 1] w2, float[10, 5] v, int64[1] flat = {-1}, int64 zero = {0},
     int64 one = {1}, int64 stride = {10}, int64[3] behind = {1, 2, 3},
     int64[1, 10, 1, 1] listed = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}>
    { a = Conv (x, w) m = GlobalAveragePool (a) f = Reshape (m, flat)
      e = Conv (x, w2) m2 = GlobalMaxPool (e) f2 = Reshape (m2, flat)
      s = Shape <start = 0, end = 1> (x) n = Squeeze (s) r = Range (zero, n, one) k = Mul (r, stride)
      t = Unsqueeze (k, behind) i = Add (t, listed)
      p = Gather <axis = 0> (f, i) p2 = Gather <axis = 0> (f2, i) z = Add (p, p2) q = Flatten (z) y = Gemm (q, v) }""",
    "",
    "Gather picks from this axis",
)
case(
    "expand_target_behind_a_fixed_where",
    dynamic(
        """s = Shape (t) k = Gather (s, i1) q0 = Concat <axis = 0> (n, k, w8, w8) q = Where (yes, ones, q0)
        o = Expand (t, q) u = Relu (o)""",
        "bool[4] yes = {1, 0, 0, 0}, int64[4] ones = {1, 1, 1, 1}",
    ),
)
case(
    "shape_target_of_two_layers",  # one loses heads, the other stays whole, since it is an output
    """g (float[N, 5, 6] x) => (float[N, 5, 4] y, float[N, 5, 4, 3] z)
    <float[6, 12] w, float[6, 12] k, float[12, 4] v, int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] four = {4},
     int64[1] three = {3}, int64[3] back = {0, 0, 12}>
    { a = MatMul (x, w) e = MatMul (x, k) s = Shape (x) n = Gather (s, i0) t = Gather (s, i1)
      q = Concat <axis = 0> (n, t, four, three)
      ra = Reshape (a, q) ta = Transpose <perm = [0, 2, 1, 3]> (ra) tt = Transpose <perm = [0, 2, 3, 1]> (ra)
      m = MatMul (ta, tt) p = Softmax <axis = -1> (m) o = MatMul (p, ta) u = Transpose <perm = [0, 2, 1, 3]> (o)
      f = Reshape (u, back) y = MatMul (f, v)
      z = Reshape (e, q) }""",
)
case(
    "shape_number_twice_in_one_target",
    """g (float[N, 6] x) => (float[N, 4] y)
    <float[6, 100] w, int64[1] ten = {10}, float[100, 4] v, int64[2] back = {0, -1}>
    { a = Gemm (x, w) n = Shape <start = 0, end = 1> (x) q = Concat <axis = 0> (n, ten, ten) r = Reshape (a, q)
      c = Relu (r) f = Reshape (c, back) y = Gemm (f, v) }""",
)
case(
    "a_part_of_one_class",  # the two rows that a depthwise Conv makes of one channel are a part of their own
    """g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y)
    <float[8, 3, 1, 1] w, int64[2] two = {2, 14}, float[16, 1, 1, 1] k, float[3, 16, 1, 1] v, float[2, 1, 1, 1] dw>
    { a = Conv (x, w) d = Conv <group = 8> (a, k) p, q = Split <axis = 1> (d, two)
      u = Conv <group = 2> (p, dw) j = Concat <axis = 1> (q, u) y = Conv (j, v) }""",
)
case(
    "a_part_without_channels",
    """g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y)
    <float[8, 3, 1, 1] w, int64[1] z = {0}, int64[1] one = {1}, int64[1] e = {8}, float[3, 8, 1, 1] v>
    { a = Conv (x, w) p = Slice (a, z, z, one) q = Slice (a, z, e, one) r = Relu (p)
      j = Concat <axis = 1> (q, r) y = Conv (j, v) }""",
)
