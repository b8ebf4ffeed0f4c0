"""Exact transforms stay exact whatever the rig: hypothesis looks for the camera that breaks them."""
import math

import torch
from hypothesis import given, settings, strategies as st
from gslrm_mouse.cameras.pinhole import Cameras, look_at
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.preprocess.canonical import cropped, rotation_homography, virtual_cameras
from gslrm_mouse.preprocess.certificate import misplacement_bound
from gslrm_mouse.cameras.rotations import quat_to_matrix
from gslrm_mouse.cameras.rays import pixel_rays
from gslrm_mouse.views.views import Views

number = st.floats(-1, 1, allow_nan=False)
vector = st.tuples(number, number, number).map(lambda v: torch.tensor(v, dtype=torch.float64))
quat = st.tuples(number, number, number, number).filter(lambda q: sum(x*x for x in q) > .01).map(lambda q: torch.tensor(q, dtype=torch.float64))


@st.composite
def cameras(draw):
    azimuth, elevation, distance = draw(st.floats(0, 2*math.pi)), draw(st.floats(-1.2, 1.2)), draw(st.floats(150, 600))
    eye = distance*torch.tensor([math.cos(elevation)*math.cos(azimuth), math.cos(elevation)*math.sin(azimuth), math.sin(elevation)], dtype=torch.float64)
    w2c = look_at(eye[None], 30*draw(vector))
    roll = quat_to_matrix(torch.tensor([1., 0, 0, draw(number)], dtype=torch.float64))
    w2c[:, :3] = roll @ w2c[:, :3]
    K = torch.tensor([[[draw(st.floats(400, 2500)), 0, draw(st.floats(300, 900))], [0, draw(st.floats(400, 2500)), draw(st.floats(300, 900))], [0, 0, 1]]], dtype=torch.float64)
    return Cameras(K, w2c, 1152, 1024, "mm")


@settings(max_examples=60, deadline=None)
@given(cameras(), vector)
def test_the_virtual_camera_sees_the_same_rays(cams, center):
    target = virtual_cameras(cams, 20*center, torch.tensor([[549., 0, 256], [0, 549, 256], [0, 0, 1]]), 512)
    points = torch.randn(50, 3, dtype=torch.float64)*40
    q = torch.cat([target.project(points), torch.ones(1, 50, 1, dtype=torch.float64)], -1) @ rotation_homography(cams, target).mT
    assert (q[..., :2]/q[..., 2:] - cams.project(points)).abs().max() < 1e-4


@settings(max_examples=60, deadline=None)
@given(cameras(), quat, vector, st.floats(.001, 10))
def test_a_similarity_changes_no_picture(cams, q, c, scale):
    sim = Similarity(scale, quat_to_matrix(q), 50*c, "mm", "model")
    points = torch.randn(30, 3, dtype=torch.float64)*40
    assert (sim.cameras(cams).project(sim(points)) - cams.project(points)).abs().max() < 1e-6
    assert (sim.inverse.cameras(sim.cameras(cams)).w2c - cams.w2c).abs().max() < 1e-6


@settings(max_examples=20, deadline=None)
@given(cameras(), st.integers(0, 31), st.integers(0, 27))
def test_rays_fall_back_on_their_pixels(cams, i, j):
    small = cams.resized(32, 28)
    o, d = pixel_rays(small)
    p = (o + 200*d)[0, j, i]
    assert (small.project(p[None])[0, 0] - torch.tensor([i + .5, j + .5])).abs().max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(cameras(), st.integers(0, 500), st.integers(0, 400), st.integers(8, 500), st.integers(8, 500), st.integers(16, 900), st.integers(16, 900))
def test_crops_and_sizes_commute_with_projection(cams, x, y, width, height, to_width, to_height):
    blank = Views(torch.ones(1, 1024, 1152, 3), torch.zeros(1, 1024, 1152), cams)
    part = cropped(blank, x, y, width, height).cameras
    points = (torch.randn(30, 3, dtype=torch.float64)*40).clamp(-60, 60)
    points = points[cams.to_camera(points)[0, :, 2] > 20]
    want = cams.project(points) - torch.tensor([x, y])
    assert (part.project(points) - want).abs().max() < 1e-4
    assert (part.resized(to_width, to_height).project(points) - want*torch.tensor([to_width/width, to_height/height], dtype=torch.float64)).abs().max() < 1e-4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(quat, vector, st.floats(.01, 10)), min_size=3, max_size=3), cameras())
def test_similarities_are_a_group(parts, cams):
    a, b, c = (Similarity(s, quat_to_matrix(q), 10*v, "mm", "mm") for q, v, s in parts)
    points = torch.randn(20, 3, dtype=torch.float64)*40
    near = lambda x, y: (x - y).abs().max() < 1e-7*max(1., y.abs().max().item())
    assert near(((a @ b) @ c)(points), (a @ (b @ c))(points)) and near((a @ b)(points), a(b(points)))
    assert near((a.inverse @ a)(points), points) and near((a @ a.inverse)(points), points) and near((a @ Similarity(1., source="mm", target="mm"))(points), a(points))
    assert near((a @ b).cameras(cams).w2c, a.cameras(b.cameras(cams)).w2c) and near((a @ b).inverse(points), b.inverse(a.inverse(points)))


@settings(max_examples=60, deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1), st.floats(2, 4), st.floats(2, 4), st.floats(.5, 2), st.floats(.05, .8))
def test_no_point_is_misplaced_by_more_than_the_bound(where, reach, true, pretended, zoom, depth):
    "Two explicit cameras: one that takes the picture, zoomed so that the object's plane fits, and the one it is given out for."
    f, delta, x = 100., where*depth, reach*.3
    true_px = zoom*f*true/pretended*x/(true + delta)
    put_px = f*zoom*x/(pretended + zoom*delta)
    assert abs(misplacement_bound(true_px, delta, true, pretended, zoom) - abs(true_px - put_px)) < 1e-9
    assert abs(true_px - put_px) <= max(misplacement_bound(abs(true_px), s*depth, true, pretended, zoom) for s in (-1, 1)) + 1e-9


@settings(max_examples=20, deadline=None)
@given(cameras(), vector.filter(lambda v: v.norm() > .3))
def test_up_is_up(cams, up):
    eye = cams.centers[0]
    if torch.linalg.cross(eye/eye.norm(), up/up.norm()).norm() < .05: return
    v = virtual_cameras(cams, torch.zeros(3), cams.K[0].float(), 64, up)
    assert abs(v.R[0, 0] @ up) < 1e-6 and v.R[0, 1] @ up < 0       # no roll, and y points down
