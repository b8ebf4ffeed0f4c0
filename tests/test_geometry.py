"""Exact transforms stay exact whatever the rig: hypothesis looks for the camera that breaks them."""
import math

import torch
from hypothesis import given, settings, strategies as st
from gslrm_mouse.cameras import Cameras, Similarity, look_at
from gslrm_mouse.canonical import rotation_homography, virtual_cameras
from gslrm_mouse.gaussians import rotation_matrices
from gslrm_mouse.rays import pixel_rays

number = st.floats(-1, 1, allow_nan=False)
vector = st.tuples(number, number, number).map(lambda v: torch.tensor(v, dtype=torch.float64))
quat = st.tuples(number, number, number, number).filter(lambda q: sum(x*x for x in q) > .01).map(lambda q: torch.tensor(q, dtype=torch.float64))


@st.composite
def cameras(draw):
    azimuth, elevation, distance = draw(st.floats(0, 2*math.pi)), draw(st.floats(-1.2, 1.2)), draw(st.floats(150, 600))
    eye = distance*torch.tensor([math.cos(elevation)*math.cos(azimuth), math.cos(elevation)*math.sin(azimuth), math.sin(elevation)], dtype=torch.float64)
    w2c = look_at(eye[None], 30*draw(vector))
    roll = rotation_matrices(torch.tensor([1., 0, 0, draw(number)], dtype=torch.float64))
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
    sim = Similarity(scale, rotation_matrices(q), 50*c, "mm", "model")
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
