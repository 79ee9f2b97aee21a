"""Cases for `rules/resample.py`."""

from __future__ import annotations

from rules.cases import case, conv, dense, dynamic

_UP = "float[4] f = {1, 1, 2, 2}"
for _mode in ("nearest", "linear", "cubic"):
    case(f"resize_13_{_mode}", conv(f'r = Relu (a) u = Resize <mode = "{_mode}"> (r, , f)', _UP), opset=13)
case("resize_10", conv("u = Resize (a, f)", _UP), opset=10)
case("resize_10_linear", conv('u = Resize <mode = "linear"> (a, f)', "float[4] f = {1, 1, 0.5, 1.5}"), opset=10)
case("resize_11_scales", conv("u = Resize (a, none, f)", _UP + ", float[0] none"), opset=11)
case(
    "resize_11_sizes",
    conv(
        "u = Resize (a, none, none, s)",
        "float[0] none, int64[4] s = {2, 10, 12, 20}",
    ).replace("float[N, 3", "float[2, 3"),
    opset=11,
    sizes=({},),
)
for _where in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
    case(
        f"resize_{_where}",
        conv(
            f'u = Resize <mode = "linear", coordinate_transformation_mode = "{_where}"> (a, , f)',
            "float[4] f = {1, 1, 1.5, 0.7}",
        ),
    )
    case(
        f"resize_nearest_{_where}",
        conv(
            f'n = BatchNormalization (a, ga, be, me, var) u = Resize <coordinate_transformation_mode = "{_where}", '
            f'nearest_mode = "floor"> (n, , f)',
            _UP + ", float[10] ga, float[10] be, float[10] me, float[10] var",
        ),
    )
case(
    "resize_19_half_pixel_symmetric",
    conv(
        'u = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel_symmetric"> (a, , f)',
        "float[4] f = {1, 1, 1.4, 0.6}",
    ),
    opset=19,
    ir=9,
)
case("resize_18_axes", conv('u = Resize <mode = "linear", axes = [2, 3]> (a, , f)', "float[2] f = {2, 3}"), opset=18)
case(
    "resize_18_axes_sizes",
    conv('u = Resize <mode = "linear", axes = [-2, 3]> (a, , , s)', "int64[2] s = {6, 30}"),
    opset=18,
)
case(
    "resize_18_axes_with_channels",
    conv("u = Resize <axes = [3, 1]> (a, , , s)", "int64[2] s = {6, 10}"),
    opset=18,
)
case(
    "resize_18_antialias",
    conv('u = Resize <mode = "cubic", antialias = 1> (a, , f)', "float[4] f = {1, 1, 0.5, 0.6}"),
    opset=18,
)
case(
    "resize_18_not_larger",
    conv(
        'u = Resize <mode = "linear", axes = [2, 3], keep_aspect_ratio_policy = "not_larger"> (a, , , s)',
        "int64[2] s = {6, 30}",
    ),
    opset=18,
)
case(
    "resize_18_not_larger_with_channels",
    conv('u = Resize <keep_aspect_ratio_policy = "not_larger", axes = [1, 2]> (a, , , s)', "int64[2] s = {10, 8}"),
    "",
    "Resize works along this axis",
    opset=18,
)
case(
    "resize_channels",
    conv("u = Resize (a, , f)", "float[4] f = {1, 0.5, 1, 1}, float[4, 5, 1, 1] q", last="y = Conv (u, q)"),
    "",
    "Resize works along this axis",
)
case(
    "resize_channels_by_size",
    conv("u = Resize (a, , , s)", "int64[4] s = {2, 5, 8, 8}, float[4, 5, 1, 1] q", last="y = Conv (u, q)").replace(
        "float[N,", "float[2,"
    ),
    "",
    "Resize works along this axis",
    sizes=({},),
)
case(
    "resize_crops",
    conv(
        'u = Resize <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize"> (a, roi, f)',
        _UP + ", float[8] roi = {0, 0, 0.1, 0.2, 1, 1, 0.9, 0.8}",
    ),
    "",
    "Resize crops",
)
case(
    "resize_scales_are_computed",
    conv(
        "h = Shape (a) i = Slice (h, two, four) c1 = Cast <to = 1> (i) d = Div (fin, c1) "
        "f = Concat <axis = 0> (ones, d) u = Resize (a, , f)",
        "int64[1] two = {2}, int64[1] four = {4}, float[2] fin = {16, 12}, float[2] ones = {1, 1}",
    ).replace("3, 8, 8]", "3, H, W]"),
    sizes=({"N": 1, "H": 8, "W": 8}, {"N": 2, "H": 6, "W": 4}),
)
case("upsample_9", conv("u = Upsample (a, f)", _UP), opset=9)
case("upsample_9_linear", conv('u = Upsample <mode = "linear"> (a, f)', _UP), opset=9)
case("upsample_7", conv("u = Upsample <scales = [1.0, 1.0, 2.0, 3.0]> (a)"), opset=8)
case(
    "upsample_channels",
    conv("u = Upsample (a, f)", "float[4] f = {1, 2, 1, 1}, float[4, 20, 1, 1] q", last="y = Conv (u, q)"),
    "",
    "Upsample works along this axis",
    opset=9,
)
# sizes from Shape, as exporters write them
_BOUNDS = "int64[1] zero = {0}, int64[1] two = {2}, int64[1] i3 = {3}, int64[2] last = {13, 16}"
case(
    "resize_sizes_from_shape",
    dynamic("h = Shape (t) i = Slice (h, zero, two) f = Concat <axis = 0> (i, last) u = Resize (t, , , f)", _BOUNDS),
)
case(
    "resize_sizes_from_the_shape_of_others",
    dynamic(
        "e = Conv (t, k) h = Shape (e) i = Slice (h, zero, two) f = Concat <axis = 0> (i, last) u = Resize (t, , , f)",
        _BOUNDS + ", float[10, 10, 1, 1] k",
    )
    .replace("(t, , , f)", "(t, , , f) o = ReduceMean <axes = [1]> (e) l = ReduceMean <axes = [2, 3]> (o)")
    .replace("y = Conv (u, v, c)", "z = Conv (u, v, c) y = Add (z, l)"),
    "",
    "the sizes of Resize cannot be rewritten",
)
case(
    "resize_space_to_the_number_of_channels",
    dynamic(
        "h = Shape (t) i = Slice (h, zero, two) j = Slice (h, i1, two) f = Concat <axis = 0> (i, j, j) "
        "u = Resize (t, , , f)",
        _BOUNDS,
    ),
    "",
    "their number sizes another tensor",
)

_DEEP = """g (float[N, 3, 4, 6] x) => (float[N, 4, P, Q] y)
    <float[20, 3, 1, 1] w, float[20] b, float[4, 5, 1, 1] v, float[4] c>
    {{ a = Conv (x, w, b)
      r = Relu (a)
      u = DepthToSpace <blocksize = 2{mode}> (r)
      y = Conv (u, v, c) }}"""
case("depth_to_space", _DEEP.format(mode=""))
case("depth_to_space_11", _DEEP.format(mode=""), opset=10)
case("depth_to_space_dcr", _DEEP.format(mode=', mode = "DCR"'))
case("depth_to_space_crd", _DEEP.format(mode=', mode = "CRD"'))
for _m in ("DCR", "CRD"):
    case(
        f"depth_to_space_single_channel_{_m.lower()}",
        _DEEP.format(mode=f', mode = "{_m}"').replace("[20", "[4").replace("[4, 5, 1", "[4, 1, 1"),
        "",
        "they make a single channel",
    )
case(
    "depth_to_space_in_large_blocks",
    _DEEP.format(mode="")
    .replace("blocksize = 2", "blocksize = 4")
    .replace("[20", "[48")
    .replace("[4, 5, 1", "[4, 3, 1"),
)
case(
    "depth_to_space_added_to_others",
    """g (float[N, 3, 4, 6] x) => (float[N, 4, P, Q] y)
    <float[12, 3, 1, 1] w, float[12] b, float[3, 3, 1, 1] k, float[4] f = {1, 1, 2, 2}, float[4, 3, 1, 1] v>
    { a = Conv (x, w, b)
      u = DepthToSpace <blocksize = 2, mode = "CRD"> (a)
      e = Conv (x, k)
      t = Resize (e, , f)
      s = Add (u, t)
      y = Conv (s, v) }""",
    "a e",
)
case(
    "depth_to_space_twice",
    """g (float[N, 3, 2, 3] x) => (float[N, 4, P, Q] y)
    <float[48, 3, 1, 1] w, float[48] b, float[4, 3, 1, 1] v>
    { a = Conv (x, w, b)
      d = DepthToSpace <blocksize = 2> (a)
      r = Relu (d)
      u = DepthToSpace <blocksize = 2, mode = "CRD"> (r)
      y = Conv (u, v) }""",
)
case(
    "space_to_depth",
    conv("u = SpaceToDepth <blocksize = 2> (a)", "float[4, 40, 1, 1] q", last="y = Conv (u, q)"),
)
case(
    "space_to_depth_and_back",
    conv("r = Relu (a) s = SpaceToDepth <blocksize = 4> (r) t = Neg (s) u = DepthToSpace <blocksize = 4> (t)"),
)
case(
    "space_to_depth_and_back_otherwise",
    conv('s = SpaceToDepth <blocksize = 2> (a) u = DepthToSpace <blocksize = 2, mode = "CRD"> (s)')
    .replace("[10", "[12")
    .replace("[4, 10", "[4, 12"),
)
case(
    "space_to_depth_over_channels",
    conv(
        "t = Transpose <perm = [0, 2, 1, 3]> (a) s = SpaceToDepth <blocksize = 2> (t) "
        "d = DepthToSpace <blocksize = 2> (s) u = Transpose <perm = [0, 2, 1, 3]> (d)"
    ),
    "",
    "SpaceToDepth mixes this axis",
)
case(
    "depth_to_space_over_channels",
    """g (float[N, 3, 4, 6] x) => (float[N, 4, P, Q] y)
    <float[10, 3, 1, 1] w, float[10] b, float[4, 20, 1, 1] v>
    { a = Conv (x, w, b)
      t = Transpose <perm = [0, 2, 1, 3]> (a)
      d = DepthToSpace <blocksize = 2> (t)
      u = Transpose <perm = [0, 2, 1, 3]> (d)
      y = Conv (u, v) }""",
)

_HOT = {"last": "y = ReduceMean <axes = [1], keepdims = 0> (z)", "out": "float[N, 4] y"}
case(
    "expand_a_new_axis",
    dense(
        "e = Unsqueeze (a, ax) t = Expand (e, s) r = Relu (t) z = MatMul (r, v)",
        "int64[1] ax = {1}, int64[3] s = {1, 4, 1}",
        **_HOT,
    ),
)
case(
    "expand_counts_channels",
    dense(
        "e = Unsqueeze (a, ax) t = Expand (e, s) z = MatMul (t, v)",
        "int64[1] ax = {1}, int64[3] s = {1, 4, 10}",
        **_HOT,
    ),
)
case(
    "expand_to_a_higher_rank",
    dense(
        "t = Expand (a, s) z = MatMul (t, v)",
        "int64[3] s = {4, 1, 10}",
        last="y = ReduceMean <axes = [0], keepdims = 0> (z)",
    ),
)
case(
    "expand_to_a_lower_rank",
    conv("p = GlobalAveragePool (a) u = Expand (p, s)", "int64[2] s = {3, 5}"),
)
case(
    "expand_a_gate",
    conv(
        "p = GlobalAveragePool (a) q = Sigmoid (p) e = Expand (q, s) u = Mul (a, e)",
        "int64[4] s = {1, 10, 8, 8}",
    ),
)
case(
    "expand_one_number_for_two",
    conv(
        "p = GlobalAveragePool (a) e = Expand (p, s) t = Reshape (e, z) u = Conv (t, k)",
        "int64[3] s = {10, 8, 8}, float[10, 10, 1, 1] k, int64[4] z = {0, 10, 8, 8}",
    ),
    "a u",
)
case(
    "expand_single_channel",
    conv(
        "e = Conv <pads = [1, 1, 1, 1]> (x, k) t = Expand (e, s) u = Mul (a, t)",
        "float[1, 3, 3, 3] k, int64[3] s = {10, 1, 1}",
    ),
    "",
    "meets an axis without channels",
)
# targets from Shape
case("expand_as_itself", dynamic("p = GlobalAveragePool (t) s = Shape (t) e = Expand (p, s) u = Sub (t, e)"))
case(
    "expand_a_single_channel_as_others",
    dynamic(
        "e = Conv <pads = [1, 1, 1, 1]> (x, k) s = Shape (t) h = Expand (e, s) u = Mul (t, h)",
        "float[1, 3, 3, 3] k",
    ),
)
case(
    "expand_as_unrelated_channels",
    dynamic(
        "e = Conv <pads = [1, 1, 1, 1]> (x, k) p = GlobalAveragePool (e) s = Shape (t) h = Expand (p, s) "
        "j = Concat <axis = 1> (h, t)",
        "float[10, 3, 3, 3] k, float[4, 20, 1, 1] q",
        last="y = Conv (j, q)",
    ),
    "",
    "the target shape of Expand cannot be rewritten",
)
case(
    "tile_space",
    conv("u = Tile (a, r)", "int64[4] r = {1, 1, 2, 3}"),
)
case(
    "tile_channels",
    conv("u = Tile (a, r)", "int64[4] r = {1, 3, 1, 1}, float[4, 30, 1, 1] q", last="y = Conv (u, q)"),
)
case(
    "tile_channels_and_slice",
    conv(
        "t = Tile (a, r) s = Relu (t) u = Slice (s, lo, hi, ax)",
        "int64[4] r = {1, 2, 1, 1}, int64[1] lo = {4}, int64[1] hi = {17}, int64[1] ax = {1}, float[4, 13, 1, 1] q",
        last="y = Conv (u, q)",
    ),
)
case(
    "tile_channels_and_split",
    conv(
        "t = Tile (a, r) d, e = Split <axis = 1> (t, s) f = Relu (e) u = Concat <axis = 1> (f, d)",
        "int64[4] r = {1, 2, 1, 1}, int64[2] s = {7, 13}, float[4, 20, 1, 1] q",
        last="y = Conv (u, q)",
    ),
)
case(
    "tile_channels_and_gather",
    conv(
        "t = Tile (a, r) u = Gather <axis = 1> (t, i)",
        "int64[4] r = {1, 2, 1, 1}, int64[6] i = {19, 3, 13, 4, 8, 9}, float[4, 6, 1, 1] q",
        last="y = Conv (u, q)",
    ),
)
case(
    "tile_new_axis_by_shape",
    conv(
        "s = Shape (x) n = Slice (s, two, three) r = Concat <axis = 0> (ones, n) p = GlobalAveragePool (a) "
        "u = Tile (p, r)",
        "int64[1] two = {2}, int64[1] three = {3}, int64[3] ones = {1, 1, 1}",
    ),
)
case(
    "tile_channels_by_a_computed_number",
    conv(
        "s = Shape (x) n = Slice (s, zero, ones) d = Div (n, n) r = Concat <axis = 0> (ones, d, ones, ones) "
        "u = Tile (a, r)",
        "int64[1] zero = {0}, int64[1] ones = {1}",
    ),
    "",
    "the repeats of Tile are computed",
)
case(
    "center_crop_pad",
    conv("u = CenterCropPad (a, s)", "int64[4] s = {2, 10, 5, 11}").replace("float[N,", "float[2,"),
    opset=18,
    sizes=({},),
)
case("center_crop_pad_axes", conv("u = CenterCropPad <axes = [-1, 2]> (a, s)", "int64[2] s = {5, 11}"), opset=18)
case(
    "center_crop_pad_axes_with_channels",
    conv("u = CenterCropPad <axes = [-1, 1]> (a, s)", "int64[2] s = {5, 10}"),
    opset=18,
)
case(
    "center_crop_pad_channels",
    conv("u = CenterCropPad <axes = [1]> (a, s)", "int64[1] s = {5}, float[4, 5, 1, 1] q", last="y = Conv (u, q)"),
    "",
    "CenterCropPad works along this axis",
    opset=18,
)
_GRID = "8] x, float[N, 5, 6, 2] grid)"
for _m in ("bilinear", "nearest", "bicubic"):
    case(f"grid_sample_16_{_m}", conv(f'r = Relu (a) u = GridSample <mode = "{_m}"> (r, grid)').replace("8] x)", _GRID))
for _p in ("border", "reflection"):
    case(
        f"grid_sample_20_{_p}",
        conv(f'u = GridSample <mode = "linear", padding_mode = "{_p}", align_corners = 1> (a, grid)').replace(
            "8] x)", _GRID
        ),
        opset=20,
        ir=9,
    )
case(
    "grid_sample_by_channels",
    conv(
        "e = Conv <strides = [4, 4]> (x, k) p = Transpose <perm = [0, 2, 3, 1]> (e) u = GridSample (x, p)",
        "float[2, 3, 1, 1] k, float[4, 3, 1, 1] q",
        last="z = Conv (u, q) l = Conv (a, v, c) m = ReduceMean <axes = [2, 3]> (l) y = Add (z, m)",
    ),
    "a",
    "they say where GridSample reads",
)
case(
    "affine_grid",
    """g (float[N, 3, 8, 8] x) => (float[N, 4, P, Q] y)
    <float[10, 3, 3, 3] w, float[10] b, float[4, 10, 1, 1] v, float[6, 3] k, int64[3] s = {-1, 2, 3},
     int64[4] z = {2, 10, 5, 6}>
    { p = GlobalAveragePool (x)
      f = Flatten (p)
      e = Gemm <transB = 1> (f, k)
      t = Reshape (e, s)
      grid = AffineGrid (t, z)
      a = Conv (x, w, b)
      u = GridSample (a, grid)
      y = Conv (u, v) }""".replace("float[N,", "float[2,"),
    "a",
    "AffineGrid computes places",
    opset=20,
    ir=9,
    sizes=({},),
)
_ROIS = "float[3, 4] rois = {0, 0, 4, 5, 1, 2, 6, 7, 2, 1, 7, 3}, int64[3] at = {0, 0, 0}"
_RO = {"last": "z = Conv (u, v, c) m = ReduceMean <axes = [0]> (z) y = Add (m, m)", "out": "float[1, 4, P, Q] y"}
case(
    "roi_align_10",
    conv("r = Relu (a) u = RoiAlign <output_height = 2, output_width = 3> (r, rois, at)", _ROIS, **_RO),
    opset=10,
)
case(
    "roi_align_16_max",
    conv(
        'u = RoiAlign <mode = "max", output_height = 2, output_width = 3, sampling_ratio = 2> (a, rois, at)',
        _ROIS,
        **_RO,
    ),
    opset=16,
)
case(
    "max_roi_pool",
    conv(
        "u = MaxRoiPool <pooled_shape = [2, 3], spatial_scale = 0.9> (a, rois)",
        "float[2, 5] rois = {0, 0, 0, 4, 5, 0, 2, 2, 6, 7}",
        **_RO,
    ),
)
case(
    "roi_align_by_channels",
    conv(
        """p = GlobalAveragePool (a) f = Flatten (p) q4 = Gemm (f, k) s4 = Gemm (q4, k4) r4 = Sigmoid (s4)
        u = RoiAlign <output_height = 2, output_width = 3> (a, r4, at)""",
        "float[10, 7] k, float[7, 4] k4, int64[2] at = {0, 1}",
    ).replace("float[N,", "float[2,"),
    "a q4",
    "they say where RoiAlign reads",
    sizes=({},),
)
