"The stated bound on the misplacement of a point holds for parts thinner than a voxel, on random rigs."
import math
import random
from dataclasses import replace
from functools import partial

import pytest
import torch
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.pinhole import Cameras, look_at
from gslrm_mouse.preprocess import canonical
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.preprocess.certificate import misplacement_bound
from gslrm_mouse.views.hull import FOREGROUND_ALPHA, hull_cover, visual_hull
from gslrm_mouse.views.views import Views

DOMAIN = replace(FACELIFT_DOMAIN, image_size=32)
SPHERE = torch.nn.functional.normalize(
    torch.randn(400, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64), dim=1)


def random_rotation(rng):
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    Q, R = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return Q*R.diagonal().sign()


def random_object(rng): # of radius 1 about the origin: a body, and thin parts that begin in it
    body = torch.diag(torch.tensor([rng.uniform(.15, .4) for _ in range(3)], dtype=torch.float64))
    parts = [(torch.zeros(3, dtype=torch.float64), random_rotation(rng) @ body)]
    for _ in range(rng.choice((1, 1, 2))):
        Q = random_rotation(rng)
        half_length, thickness = rng.uniform(.3, .48), rng.uniform(.006, .012)
        thin = torch.diag(torch.tensor([half_length, thickness, thickness], dtype=torch.float64))
        parts.append((half_length*Q[:, 0], Q @ thin))
    return parts


def random_cameras(rng, size): # around the object; extreme fields of view, near objects, off-centre principal points
    n = rng.randint(3, 6)
    fov = math.radians(rng.choice((rng.uniform(3, 15), rng.uniform(20, 60), rng.uniform(70, 110))))
    f = size/2/math.tan(fov/2)
    # the object, of radius 1, fills at most nine tenths of the half image
    nearest = 1/math.sin(math.atan(.9*size/2/f))
    eyes, K = [], []
    for i in range(n):
        azimuth = 2*math.pi*(i + rng.uniform(-.3, .3))/n
        elevation = math.radians(rng.uniform(-30, 60))
        distance = max(1.15, nearest*rng.uniform(1.02, 1.6))
        eyes.append([distance*math.cos(elevation)*math.cos(azimuth), distance*math.cos(elevation)*math.sin(azimuth),
                     distance*math.sin(elevation)])
    eyes = torch.tensor(eyes, dtype=torch.float64)
    aim = torch.zeros(n, 3, dtype=torch.float64)
    w2c = look_at(eyes, aim)
    for _ in range(n):
        shift = [size*rng.uniform(-.4, .4) if rng.random() < .3 else 0. for _ in range(2)]
        K.append([[f, 0, size/2 + shift[0]], [0, f, size/2 + shift[1]], [0, 0, 1]])
    return Cameras(torch.tensor(K, dtype=torch.float64), w2c, size, size, "model")


def coverage_of(parts, cams, samples=3): # (V, H, W) share of every pixel whose rays meet a part
    size = cams.width
    at = (torch.arange(size*samples, dtype=torch.float64) + .5)/samples
    y, x = torch.meshgrid(at, at, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).view(-1, 3)
    masks = []
    for K, R, eye in zip(cams.K, cams.R, cams.centers):
        d = pixels @ torch.linalg.inv(K @ R).T
        hit = torch.zeros(len(d), dtype=torch.bool)
        for center, axes in parts:
            to_unit = torch.linalg.inv(axes)
            a, b = d @ to_unit.T, to_unit @ (eye - center)
            along = a @ b
            hit |= (along**2 >= a.square().sum(-1)*(b @ b - 1)) & (along < 0)
        masks.append(hit.view(size, samples, size, samples).double().mean((1, 3)))
    return torch.stack(masks)


def shown_points(parts, cams, alpha): # of the surface, in a pixel of every silhouette or beside one
    points = torch.cat([center + SPHERE @ axes.T for center, axes in parts])
    near = torch.nn.functional.max_pool2d((alpha > FOREGROUND_ALPHA).float()[:, None], 3, 1, 1)[:, 0] > 0
    is_shown = torch.ones(len(points), dtype=torch.bool)
    for v, uv in enumerate(cams.project(points)):
        x, y = uv.floor().long().T
        in_image = (x >= 0) & (y >= 0) & (x < cams.width) & (y < cams.height)
        is_shown &= in_image & near[v, y.clamp(0, cams.height - 1), x.clamp(0, cams.width - 1)]
    return points[is_shown]


def random_case(rng):
    cams = random_cameras(rng, size=rng.choice((48, 64)))
    parts = random_object(rng)
    alpha = coverage_of(parts, cams)
    views = Views(torch.ones(*alpha.shape, 3), alpha.float(), cams)
    options = rng.choice((dict(choose="zoom", zoom=rng.uniform(.6, 3.)), dict(choose="equal_distances")))
    return views, shown_points(parts, cams, alpha), options


def true_and_declared(views, prepared): # cameras in model units, the similarity to model units, and the magnification
    exact = canonicalize(views, DOMAIN)
    K = exact.views.cameras.K.clone()
    K[:, :2, :2] *= torch.tensor(prepared.zoom, dtype=K.dtype)[:, None, None]
    magnify = prepared.zoom[0] if prepared.certificate.choose == "zoom" else 1.
    return replace(exact.views.cameras, K=K), prepared.views.cameras, exact.to_source.inverse, magnify


def misplacements(views, prepared, points): # (V,) pixels, the largest of true points
    true, declared, sim, magnify = true_and_declared(views, prepared)
    in_model = sim(points)
    return (true.project(in_model) - declared.project(magnify*in_model)).norm(dim=-1).amax(1)


def bounds_from_voxel_centres(views, prepared, points): # (V,) at least what was stated before
    true, declared, sim, magnify = true_and_declared(views, prepared)
    hull = visual_hull(views)
    voxels, margin = sim(hull.points), hull.voxel*sim.scale*3**.5
    bounds = []
    for i in range(len(views)):
        d, m = true.centers[i].norm().item(), declared.centers[i].norm().item()
        half_depth = (true[i].to_camera(voxels)[0, :, 2] - d).abs().max().item() + margin
        radius = (true[i].project(sim(points))[0] - DOMAIN.image_size/2).norm(dim=-1).max()
        u = (radius + 2 + margin*true.K[i, 0, 0]/max(d - half_depth, 1e-9)).item()
        bounds.append(max(misplacement_bound(u, delta, d, m, magnify) for delta in (-half_depth, half_depth)))
    return torch.tensor(bounds)


@pytest.mark.parametrize("n_cases", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_no_true_point_is_misplaced_by_more_than_the_bound(monkeypatch, n_cases):
    monkeypatch.setattr(canonical, "hull_cover", partial(hull_cover, most=1000)) # fewer cubes, for speed
    rng, tightness = random.Random(0), []
    for case in range(n_cases):
        views, points, options = random_case(rng)
        prepared = canonicalize(views, DOMAIN, **options)
        bound = torch.tensor([v.bound_px for v in prepared.certificate.views])
        error = misplacements(views, prepared, points)
        assert (error <= bound).all(), (case, options, error, bound)
        if bound.max() < math.inf: tightness.append((bound.max()/error.max()).item())
    assert len(tightness) > .8*n_cases
    assert sorted(tightness)[len(tightness)//2] < 2 # the bound says something


def test_depths_of_voxel_centres_do_not_bound_thin_parts():
    rng, violated = random.Random(1), 0
    for _ in range(12):
        views, points, options = random_case(rng)
        prepared = canonicalize(views, DOMAIN, **options)
        error = misplacements(views, prepared, points)
        violated += (error > bounds_from_voxel_centres(views, prepared, points)).any().item()
        assert (error <= torch.tensor([v.bound_px for v in prepared.certificate.views])).all()
    assert violated > 0


def test_an_object_that_no_pixel_shows_has_no_size_to_zoom_to():
    views, _, _ = random_case(random.Random(3))
    alpha = torch.zeros_like(views.alpha)
    alpha[:, 24, 24] = 1
    with pytest.raises(ValueError, match="choose='distance'"):
        canonicalize(replace(views, alpha=alpha), DOMAIN, size=4, choose="zoom")


def test_masks_that_leave_the_object_open_bound_nothing():
    views, _, _ = random_case(random.Random(3))
    alpha = views.alpha.clone()
    alpha[:, 0], alpha[:, :, 0] = 1, 1 # every silhouette reaches the border
    prepared = canonicalize(replace(views, alpha=alpha), DOMAIN, choose="equal_distances")
    assert prepared.certificate.views[0].bound_px == math.inf
    assert "do not bound" in prepared.statement
