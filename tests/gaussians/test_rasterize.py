"""Kernels against the float64 reference on scenes nobody chose: sizes, principal points, views and clouds at random."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st
from gslrm_mouse.gaussians import cpu_kernels
from gslrm_mouse.threads import num_threads
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.rasterize import rasterization, render
from gslrm_mouse.gaussians.reference import rasterize_reference, unambiguous_pixels

NAMES = ("means", "quats", "scales", "opacities", "colors")
f64 = torch.float64


def cloud(seed, n, channels=3, size=.06):
    "Numbers which float32 holds exactly, as float64."
    g = torch.Generator().manual_seed(seed)
    def normal(*shape): return torch.randn(*shape, generator=g)
    values = dict(
        means=normal(n, 3)*.6, quats=normal(n, 4), scales=size*(.8*normal(n, 3)).exp(),
        opacities=torch.sigmoid(2*normal(n)), colors=torch.rand(n, channels, generator=g))
    return {name: value.to(f64) for name, value in values.items()}


def single(seed, n):
    "A cloud in float32."
    return {name: value.float() for name, value in cloud(seed, n).items()}


def leaves(s, dtype=torch.float32):
    return {name: value.to(dtype).clone().requires_grad_() for name, value in s.items()}


def compare_gradients(drawn, expected, counts, x, x_reference, bound, slack=1e-9):
    "Backward passes of one random loss over the pixels that count."
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))*counts
    (drawn*weight).sum().backward()
    (expected*weight).sum().backward()
    for name in x:
        gradient, reference = x[name].grad, x_reference[name].grad
        assert (gradient - reference).norm() <= bound*reference.norm() + slack, name


def compare(s, w2c, K, W, H, bound, dtype=torch.float32, antialiased=False, band=1e-4):
    "Image, depth, alpha and every gradient of one view, relative L2 over the pixels which no threshold decides."
    s = dict(s, viewmats=w2c)
    x, x_reference = leaves(s, dtype), leaves(s, f64)
    img, alpha, _ = rasterization(
        *(x[name] for name in NAMES), x["viewmats"][None], K[None].to(dtype), W, H, render_mode="RGB+D",
        rasterize_mode="antialiased" if antialiased else "classic")
    drawn = torch.cat([img, alpha], -1)[0]
    color, reference_alpha, depth = rasterize_reference(
        *(x_reference[name] for name in NAMES), x_reference["viewmats"], K, W, H, antialiased=antialiased)
    expected = torch.cat([color, depth[..., None], reference_alpha[..., None]], -1)
    with torch.no_grad():
        counts = unambiguous_pixels(*(s[name] for name in NAMES), w2c, K, W, H, antialiased, band=band)
    assert ((drawn - expected)*counts[..., None]).norm() <= bound*expected.norm()
    compare_gradients(drawn, expected, counts[..., None], x, x_reference, bound)
    return counts


sides = st.integers(1, 70)
principal_points = st.floats(-.3, 1.3) # in units of the image's side


@given(
    seed=st.integers(0, 10**6), W=sides, H=sides, n=st.integers(1, 400), channels=st.sampled_from([1, 2, 3, 4, 7]),
    cx=principal_points, cy=principal_points, antialiased=st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_against_reference(seed, W, H, n, channels, cx, cy, antialiased):
    cams = orbit([float(seed % 360)], float(seed % 80 - 40), 2.2, 45., 64)
    K, w2c = cams.K[0].float().to(f64), cams.w2c[0].float().to(f64)
    K[0, 0] *= 1.25
    K[0, 2], K[1, 2] = round(W*cx), round(H*cy)
    compare(cloud(seed, n, channels), w2c, K, W, H, 1e-5, antialiased=antialiased)


@pytest.mark.parametrize("size", [.02, .06, .4])
def test_bound_on_whole_images(size):
    cams = orbit([40.], 15., 2.2, 45., 64)
    w2c, K = cams.w2c[0].float().to(f64), cams.K[0].float().to(f64)
    counts = compare(cloud(7, 600, size=size), w2c, K, 61, 53, 1e-5)
    assert counts.double().mean() > .9


def test_double_precision():
    cams = orbit([70.], -20., 2.2, 45., 64)
    w2c, K = cams.w2c[0].to(f64), cams.K[0].to(f64)
    compare(cloud(11, 300), w2c, K, 45, 37, 1e-11, dtype=f64, antialiased=True, band=1e-9)


def test_reference_would_notice_a_transposed_intrinsic_matrix():
    s = single(3, 50)
    cams = orbit([20.], 10., size=32)
    img, _, _ = rasterization(*(s[name] for name in NAMES), cams.w2c, cams.K, 32, 32)
    w2c, transposed = cams.w2c[0].double(), cams.K[0].double().mT
    expected, _, _ = rasterize_reference(*(value.double() for value in s.values()), w2c, transposed, 32, 32)
    assert (img[0] - expected).abs().max() > .01


def test_gsplat_projects_the_same():
    gsplat = pytest.importorskip(
        "gsplat.cuda._torch_impl", reason="gsplat, whose torch projection is the reference here, is not installed")
    s = cloud(5, 200)
    cams = orbit([40.], 25., size=64)
    w2c, K = cams.w2c.to(f64), cams.K.to(f64).clone()
    K[0, 0, 0] *= 1.2
    K[0, 0, 2] += 5
    covars, _ = gsplat._quat_scale_to_covar_preci(s["quats"], s["scales"], compute_preci=False)
    radii, means2d, depths, conics, compensations = gsplat._fully_fused_projection(
        s["means"], covars, w2c, K, 64, 64, calc_compensations=True)
    opaque = torch.ones_like(s["opacities"])
    _, _, projected = rasterization(
        s["means"], s["quats"], s["scales"], opaque, s["colors"], w2c, K, 64, 64, rasterize_mode="antialiased")
    seen = (projected["radii"] > 0).all(-1)
    assert seen.sum() > 150 and (radii[seen] > 0).all()
    for name, expected in dict(means2d=means2d, conics=conics, depths=depths, opacities=compensations).items():
        assert (projected[name][seen] - expected[seen]).abs().max() < 1e-6*expected[seen].abs().max(), name


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_against_reference(degree):
    "Gradients of coefficients, means and cameras where colour depends on the view; the harmonics are gsplat's."
    gsplat = pytest.importorskip(
        "gsplat.cuda._torch_impl", reason="gsplat, whose torch harmonics are the reference here, is not installed")
    cams = orbit([40.], 25., 2.2, 45., 64)
    w2c, K, W, H = cams.w2c[0].float().to(f64), cams.K[0].float().to(f64), 53, 41
    K[0, 0], K[0, 2], K[1, 2] = K[0, 0]*1.25, 20., 26.
    s = cloud(9, 150)
    del s["colors"]
    s["sh"] = (torch.randn(150, 16, 3, generator=torch.Generator().manual_seed(3))*.3).to(f64)
    s["viewmats"] = w2c
    x, x_reference = leaves(s), leaves(s, f64)
    geometry = NAMES[:4]
    img, _, _ = rasterization(
        *(x[name] for name in geometry), x["sh"], x["viewmats"][None], K[None].float(), W, H, sh_degree=degree)

    directions = x_reference["means"] - torch.linalg.inv(x_reference["viewmats"])[:3, 3]
    colors = (gsplat._spherical_harmonics(degree, directions, x_reference["sh"]) + .5).clamp(min=0)
    expected, _, _ = rasterize_reference(
        *(x_reference[name] for name in geometry), colors, x_reference["viewmats"], K, W, H)
    with torch.no_grad(): counts = unambiguous_pixels(*(s[name] for name in geometry), colors, w2c, K, W, H)[..., None]
    assert counts.double().mean() > .9
    compare_gradients(img[0], expected, counts, x, x_reference, bound=1e-5, slack=0)
    for name in x: assert x_reference[name].grad.any(), name


def gradients(n_threads, *tensors, **kwargs):
    "Image, alpha and the gradients of all inputs."
    x = [v.clone().requires_grad_() for v in tensors]
    lead = x[0].shape[:-2]
    cams = orbit([0, 100, 200], 20., size=50)
    w2c, K = cams.w2c.expand(*lead, 3, 4, 4), cams.K.expand(*lead, 3, 3, 3)
    with num_threads(n_threads): img, alpha, _ = rasterization(*x, w2c, K, 50, 41, **kwargs)
    (img.sin().sum() + alpha.square().sum()).backward()
    return [img, alpha, *(v.grad for v in x)]


@pytest.mark.parametrize("n", [1, 37, 9000])
def test_threads_and_batches_change_no_bit(n):
    first, second = list(single(1, n).values()), list(single(2, n).values())
    one_thread = gradients(1, *first)
    for n_threads in (2, 3, 5):
        assert all(torch.equal(a, b) for a, b in zip(one_thread, gradients(n_threads, *first)))
    batch = gradients(2, *(torch.stack(pair) for pair in zip(first, second)))
    loop = [torch.stack(pair) for pair in zip(one_thread, gradients(1, *second))]
    assert all(torch.equal(a, b) for a, b in zip(batch, loop))


def test_alpha_without_colour_channels():
    "Gradients of alpha are the same with no channel as with one black channel."
    *geometry, colors = single(3, 400).values()
    cams = orbit([20.], 10., size=50)
    results = []
    for black in (colors[:, :0], 0*colors[:, :1]):
        x = [v.clone().requires_grad_() for v in geometry]
        img, alpha, projected = rasterization(*x, black, cams.w2c, cams.K, 50, 41)
        alpha.square().sum().backward()
        assert img.shape == (1, 41, 50, black.shape[1])
        columns = projected["means2d"].stride(-2) # of a record: eight numbers, and the three channels that kernels read
        assert columns >= 8 + 3
        results.append([alpha, *(v.grad for v in x)])
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
@pytest.mark.parametrize("n", [0, 5])
def test_nothing_to_see(n, mode):
    s = single(1, n)
    s["means"] = s["means"] + 1000.
    x = leaves(s)
    cams = orbit([0, 90], 0., size=9)
    backgrounds = torch.full((2, 3), .25)
    img, alpha, _ = rasterization(*x.values(), cams.w2c, cams.K, 9, 7, backgrounds=backgrounds, render_mode=mode)
    img.sum().backward()
    pixel = []
    if "RGB" in mode: pixel += [.25]*3
    if "D" in mode: pixel += [0.]
    assert torch.equal(img, torch.tensor(pixel).expand(2, 7, 9, -1)) and not alpha.any()
    assert not any(v.grad.any() for v in x.values() if v.grad is not None)


@given(
    seed=st.integers(0, 10**6), bad=st.sampled_from(["nan", "inf", "-inf"]), where=st.sampled_from(NAMES),
    degree=st.sampled_from([None, 0, 1, 3]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_one_bad_number_harms_only_its_gaussian(seed, bad, where, degree):
    s = single(seed, 12)
    if degree is not None: s["colors"] = torch.randn(12, 16, 3, generator=torch.Generator().manual_seed(seed))
    i = seed % 12
    def without_bad(x): return torch.cat([x[:i], x[i + 1:]])
    good = {name: without_bad(value) for name, value in s.items()}
    coordinate = (seed//12) % min(3, s[where][i].numel())
    s[where][i].view(-1)[coordinate] = float(bad)

    cams = orbit([float(seed % 360)], 10., size=20)
    x, x_good = leaves(s), leaves(good)
    img, img_good = [
        rasterization(*inputs.values(), cams.w2c, cams.K, 20, 20, sh_degree=degree)[0] for inputs in (x, x_good)]
    for image in (img, img_good): image.square().sum().backward()
    assert torch.equal(img, img_good)
    for name in x:
        assert not x[name].grad[i].any(), name
        assert torch.equal(without_bad(x[name].grad), x_good[name].grad), name


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_have_a_gradient_through_the_direction(degree):
    s = single(4, 30)
    g = Gaussians(*(s[name].requires_grad_() for name in NAMES[:4]), torch.randn(30, 16, 3).requires_grad_())
    cams = orbit([0, 120], 10., size=24)
    images, _ = render(g, cams, sh_degree=degree)
    images.square().sum().backward()
    used = g.sh.grad.abs().sum((0, 2)) > 0
    assert used.tolist() == [k < (degree + 1)**2 for k in range(16)]
    per_view = [render(g, cams[v], sh_degree=degree)[0][0] for v in range(2)]
    assert torch.equal(images, torch.stack(per_view))


def test_second_derivative_is_refused():
    x = leaves(single(4, 5))
    cams = orbit([0], 10., size=12)
    img, _, _ = rasterization(*x.values(), cams.w2c, cams.K, 12, 12)
    gradient, = torch.autograd.grad(img.square().sum(), x["means"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"): gradient.sum().backward()


def last_pixel(width):
    "What a small Gaussian in the last column covers of it."
    K = torch.tensor([[1., 0, width - .5], [0, 1, 4], [0, 0, 1]])
    means = torch.tensor([[0., 0, 1]])
    quats = torch.tensor([[1., 0, 0, 0]])
    scales = torch.full((1, 3), 2.)
    _, alpha, _ = rasterization(
        means, quats, scales, torch.tensor([.9]), torch.ones(1, 3), torch.eye(4)[None], K[None], width, 8)
    return alpha[0, 4, -1].item()


def test_the_last_tile_of_the_widest_image_is_drawn():
    "A wider image would have an end tile that does not fit into the boxes, and is refused."
    widest = cpu_kernels.TILE*(2**15 - 1)
    assert last_pixel(widest) > .5
    with pytest.raises(ValueError, match=f"at most {widest} pixels a side, not {widest + 1} × 8"):
        last_pixel(widest + 1)


DRAW = """import torch
from gslrm_mouse.gaussians import cpu_kernels as r
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.gaussians.rasterize import rasterization
cams = orbit([0], 0., size=16)
x = [torch.zeros(1, 3), torch.ones(1, 4), torch.ones(1, 3), torch.ones(1), torch.ones(1, 3)]
if WHOLE: rasterization(*(v.requires_grad_() for v in x), cams.w2c, cams.K, 16, 16)[0].sum().backward()
else: r._span(1., 1., 4)
kernels = (r._project, r._bin, r._blend, r._blend_backward, r._sum_slots, r._project_backward, r._span)
hits = sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels)
misses = sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels)
print(r.__file__, hits, misses)"""


def install(folder):
    "Copy the package, with new time stamps."
    package = Path(cpu_kernels.__file__).parents[1]
    ignore = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(package, folder/"gslrm_mouse", dirs_exist_ok=True, copy_function=shutil.copy, ignore=ignore)


def cache_hits_and_misses(folder, whole=True):
    "Of the kernels in a fresh process with the package in `folder`: a drawing with gradient, or the smallest kernel."
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA")}
    env["PYTHONPATH"] = str(folder)
    out = subprocess.run(
        [sys.executable, "-c", f"WHOLE = {whole}\n{DRAW}"], env=env, cwd=folder, capture_output=True, text=True,
        check=True).stdout.split()
    assert Path(out[0]).is_relative_to(folder)
    return int(out[1]), int(out[2])


@pytest.mark.slow
def test_compiled_kernels_survive_a_reinstall(tmp_path):
    "Same sources with new time stamps: nothing is compiled again. Other sources: everything is."
    install(tmp_path)
    hits, _ = cache_hits_and_misses(tmp_path)
    assert hits == 0
    install(tmp_path)
    assert cache_hits_and_misses(tmp_path) == (6, 0)
    with open(tmp_path/"gslrm_mouse/gaussians/cpu_kernels.py", "a") as f: f.write("# changed\n")
    assert cache_hits_and_misses(tmp_path, whole=False) == (0, 1)
