"""Cases for `rules/groupnorm.py`."""

from __future__ import annotations

from rules.cases import case, conv, dense

_SB = "float[10] pos, float[10] t"
case("instance_normalization", conv("r = InstanceNormalization (a, pos, t) u = Relu (r)", _SB))
case("instance_normalization_6", conv("u = InstanceNormalization <epsilon = 0.01> (a, pos, t)", _SB), opset=8)
case(
    "instance_normalization_1d",
    """g (float[N, 3, 20] x) => (float[N, 4, P] y)
    <float[8, 3, 3] w, float[8] b, float[8] pos, float[8] t, float[4, 8, 1] v>
    { a = Conv (x, w, b)
      u = InstanceNormalization (a, pos, t)
      y = Conv (u, v) }""",
)
case(
    "instance_normalization_between_two_convs",
    conv(
        "r = InstanceNormalization (a, pos, t) e = Conv (r, k) s = InstanceNormalization (e, pos2, t2) u = Relu (s)",
        _SB + ", float[10, 10, 1, 1] k, float[10] pos2, float[10] t2",
    ),
    "a e",
)
case(
    "instance_normalization_scale_is_computed",
    conv(
        """p = GlobalAveragePool (a) q = Conv (p, k) s2 = Squeeze (q, ax) s1 = Reshape (s2, flat)
        u = InstanceNormalization (a, s1, t)""",
        "float[10, 10, 1, 1] k, int64[2] ax = {2, 3}, int64[1] flat = {-1}, float[10] t",
    ).replace("float[N,", "float[1,"),
    "a q",
    sizes=({},),
)
case(
    "instance_normalization_over_channels",
    conv(
        "p = Transpose <perm = [0, 2, 1, 3]> (a) r = InstanceNormalization (p, pos, t) "
        "u = Transpose <perm = [0, 2, 1, 3]> (r)",
        "float[8] pos, float[8] t",
    ),
    "",
    "InstanceNormalization mixes this axis",
)

# a GroupNorm, as exporters write it: groups are the channels of an InstanceNormalization
_GN = "int64[3] s = {0, 5, -1}, float[5] pos, float[5] t, float[10, 1, 1] pos2, float[10, 1, 1] t2"
case(
    "instance_normalization_of_groups",
    conv(
        """r = Reshape (a, s) h = InstanceNormalization (r, pos, t) z = Shape (a) q = Reshape (h, z)
        m = Mul (q, pos2) n = Add (m, t2) u = Relu (n)""",
        _GN,
    ),
)
case(
    "instance_normalization_of_groups_and_back_to_a_constant_shape",
    conv(
        """r = Reshape (a, s) h = InstanceNormalization (r, pos, t) q = Reshape (h, z)
        m = Mul (q, pos2) n = Add (m, t2) u = Relu (n)""",
        _GN + ", int64[4] z = {-1, 10, 8, 8}",
    ),
)
case(
    "instance_normalization_of_few_groups",
    conv(
        """r = Reshape (a, s) h = InstanceNormalization (r, pos, t) z = Shape (a) q = Reshape (h, z)
        m = Mul (q, pos2) n = Add (m, t2) u = Relu (n)""",
        _GN.replace("{0, 5, -1}", "{0, 3, -1}").replace("float[5]", "float[3]"),
    )
    .replace("[10", "[12")
    .replace("[4, 10", "[4, 12"),
)
case(
    "instance_normalization_of_one_group",
    conv(
        "r = Reshape (a, s) h = InstanceNormalization (r, pos, t) z = Shape (a) q = Reshape (h, z) u = Mul (q, pos2)",
        "int64[3] s = {0, 1, -1}, float[1] pos, float[1] t, float[10, 1, 1] pos2",
    ),
    "",
    "InstanceNormalization mixes this axis",
)
case(
    "instance_normalization_of_groups_in_two_layers",
    conv(
        """r = Reshape (a, s) h = InstanceNormalization (r, pos, t) q = Reshape (h, z) m = Mul (q, pos2)
        e = Conv (m, k) f = Add (e, m)
        r2 = Reshape (f, s2) h2 = InstanceNormalization (r2, one2, zero2) q2 = Reshape (h2, z) u = Mul (q2, pos3)""",
        """int64[3] s = {0, 12, -1}, float[12] pos, float[12] t, float[24, 1, 1] pos2,
        int64[4] z = {0, 24, 8, 8},
        float[24, 24, 1, 1] k, int64[3] s2 = {0, 6, -1},
        float[6] one2 = {1, 1, 1, 1, 1, 1}, float[6] zero2 = {0, 0, 0, 0, 0, 0},
        float[24, 1, 1] pos3""",
    ).replace("float[10, 3, 3, 3] w, float[10] b, float[4, 10", "float[24, 3, 3, 3] w, float[24] b, float[4, 24"),
    "a e",
)

case(
    "group_normalization_21",
    conv("r = GroupNormalization <num_groups = 5> (a, pos, t) u = Relu (r)", _SB),
    opset=21,
    ir=10,
)
case(
    "group_normalization_21_residual",
    conv(
        "r = GroupNormalization <num_groups = 5> (a, pos, t) e = Conv (r, k) u = Add (a, e)",
        _SB + ", float[10, 10, 1, 1] k",
    ),
    "a e",
    opset=21,
    ir=10,
)
case(
    "group_normalization_of_all",
    conv("u = GroupNormalization <num_groups = 1> (a, pos, t)", _SB),
    "",
    "GroupNormalization normalises all channels together",
    opset=21,
    ir=10,
)
case(
    "group_normalization_mixes_places",
    conv(
        """p = Transpose <perm = [0, 2, 1, 3]> (a) r = GroupNormalization <num_groups = 4> (p, pos, t)
        u = Transpose <perm = [0, 2, 1, 3]> (r)""",
        "float[8] pos, float[8] t",
    ),
    "",
    "GroupNormalization mixes this axis",
    opset=21,
    ir=10,
)

case("lrn_over_channels", conv("u = LRN <size = 3> (a)"), "", "LRN normalises along this axis")
case(
    "lrn_beside_channels",
    conv(
        "p = Transpose <perm = [0, 2, 1, 3]> (a) r = LRN <size = 5, alpha = 0.1, beta = 0.5, bias = 2.0> (p) "
        "u = Transpose <perm = [0, 2, 1, 3]> (r)"
    ),
)
case("mean_variance_normalization", conv("u = MeanVarianceNormalization (a)"))
case("mean_variance_normalization_9", conv("u = MeanVarianceNormalization <axes = [2, -1]> (a)"), opset=9)
case(
    "mean_variance_normalization_over_channels",
    conv("u = MeanVarianceNormalization <axes = [1, 2, 3]> (a)"),
    "",
    "MeanVarianceNormalization normalises along this axis",
)
case("lp_normalization", dense("u = LpNormalization (a)"), "", "LpNormalization normalises along this axis")
case("lp_normalization_over_space", conv("u = LpNormalization <axis = 2, p = 1> (a)"))
case("lp_normalization_over_batch", dense("u = LpNormalization <axis = 0, p = 2> (a)"))
