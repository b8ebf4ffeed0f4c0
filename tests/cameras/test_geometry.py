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

f64 = torch.float64
number = st.floats(-1, 1, allow_nan=False)
focal = st.floats(400, 2500)
principal = st.floats(300, 900)


def tensor(values): return torch.tensor(values, dtype=f64)


vector = st.tuples(number, number, number).map(tensor)
quat = st.tuples(number, number, number, number).map(tensor).filter(lambda q: q.square().sum() > .01)


@st.composite
def cameras(draw):
    azimuth, elevation = draw(st.floats(0, 2*math.pi)), draw(st.floats(-1.2, 1.2))
    horizontal = math.cos(elevation)
    direction = tensor([horizontal*math.cos(azimuth), horizontal*math.sin(azimuth), math.sin(elevation)])
    eye = draw(st.floats(150, 600))*direction
    w2c = look_at(eye[None], 30*draw(vector))
    roll = quat_to_matrix(tensor([1., 0, 0, draw(number)]))
    w2c[:, :3] = roll @ w2c[:, :3]
    K = tensor([[[draw(focal), 0, draw(principal)], [0, draw(focal), draw(principal)], [0, 0, 1]]])
    return Cameras(K, w2c, 1152, 1024, "mm")


def random_points(n): return torch.randn(n, 3, dtype=f64)*40


@settings(max_examples=60, deadline=None)
@given(cameras(), vector)
def test_the_virtual_camera_sees_the_same_rays(cams, center):
    K = torch.tensor([[549., 0, 256], [0, 549, 256], [0, 0, 1]])
    target = virtual_cameras(cams, 20*center, K, 512)
    points = random_points(50)
    homogeneous = torch.cat([target.project(points), torch.ones(1, 50, 1, dtype=f64)], -1)
    mapped = homogeneous @ rotation_homography(cams, target).mT
    assert (mapped[..., :2]/mapped[..., 2:] - cams.project(points)).abs().max() < 1e-4


@settings(max_examples=60, deadline=None)
@given(cameras(), quat, vector, st.floats(.001, 10))
def test_a_similarity_changes_no_image(cams, q, c, scale):
    sim = Similarity(scale, quat_to_matrix(q), 50*c, "mm", "model")
    points = random_points(30)
    assert (sim.cameras(cams).project(sim(points)) - cams.project(points)).abs().max() < 1e-6
    assert (sim.inverse.cameras(sim.cameras(cams)).w2c - cams.w2c).abs().max() < 1e-6


@settings(max_examples=20, deadline=None)
@given(cameras(), st.integers(0, 31), st.integers(0, 27))
def test_rays_fall_back_on_their_pixels(cams, i, j):
    small = cams.resized(32, 28)
    o, d = pixel_rays(small)
    point = (o + 200*d)[0, j, i]
    assert (small.project(point[None])[0, 0] - torch.tensor([i + .5, j + .5])).abs().max() < 1e-6


corner = st.tuples(st.integers(0, 500), st.integers(0, 400))
crop_size = st.tuples(st.integers(8, 500), st.integers(8, 500))
new_size = st.tuples(st.integers(16, 900), st.integers(16, 900))


@settings(max_examples=40, deadline=None)
@given(cameras(), corner, crop_size, new_size)
def test_crops_and_sizes_commute_with_projection(cams, corner, size, resized):
    blank = Views(torch.ones(1, 1024, 1152, 3), torch.zeros(1, 1024, 1152), cams)
    part = cropped(blank, *corner, *size).cameras
    points = random_points(30).clamp(-60, 60)
    points = points[cams.to_camera(points)[0, :, 2] > 20]
    expected = cams.project(points) - torch.tensor(corner)
    assert (part.project(points) - expected).abs().max() < 1e-4
    stretch = tensor(resized)/tensor(size)
    assert (part.resized(*resized).project(points) - expected*stretch).abs().max() < 1e-4


def close(x, y): return (x - y).abs().max() < 1e-7*max(1., y.abs().max().item())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(quat, vector, st.floats(.01, 10)), min_size=3, max_size=3), cameras())
def test_similarities_are_a_group(parts, cams):
    a, b, c = (Similarity(s, quat_to_matrix(q), 10*v, "mm", "mm") for q, v, s in parts)
    identity = Similarity(1., source="mm", target="mm")
    points = torch.randn(20, 3, dtype=f64)*40
    assert close(((a @ b) @ c)(points), (a @ (b @ c))(points))
    assert close((a @ b)(points), a(b(points)))
    assert close((a.inverse @ a)(points), points)
    assert close((a @ a.inverse)(points), points)
    assert close((a @ identity)(points), a(points))
    assert close((a @ b).cameras(cams).w2c, a.cameras(b.cameras(cams)).w2c)
    assert close((a @ b).inverse(points), b.inverse(a.inverse(points)))


@settings(max_examples=60, deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1), st.floats(2, 4), st.floats(2, 4), st.floats(.5, 2), st.floats(.05, .8))
def test_no_point_is_misplaced_by_more_than_the_bound(where, offset, true, declared, zoom, depth):
    "Two explicit cameras: the true one, zoomed so that the object's plane fits, and the one that is declared."
    f, delta, x = 100., where*depth, offset*.3
    true_px = zoom*f*true/declared*x/(true + delta)
    declared_px = f*zoom*x/(declared + zoom*delta)
    error = abs(true_px - declared_px)
    assert abs(misplacement_bound(true_px, delta, true, declared, zoom) - error) < 1e-9
    bounds = [misplacement_bound(abs(true_px), sign*depth, true, declared, zoom) for sign in (-1, 1)]
    assert error <= max(bounds) + 1e-9


@settings(max_examples=20, deadline=None)
@given(cameras(), vector.filter(lambda v: v.norm() > .3))
def test_up_is_up(cams, up):
    eye = cams.centers[0]
    if torch.linalg.cross(eye/eye.norm(), up/up.norm()).norm() < .05: return # nearly straight from above
    v = virtual_cameras(cams, torch.zeros(3), cams.K[0].float(), 64, up)
    assert abs(v.R[0, 0] @ up) < 1e-6 # no roll
    assert v.R[0, 1] @ up < 0 # y points down
