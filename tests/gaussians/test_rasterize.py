"""Kernels against the float64 twin on scenes nobody chose: sizes, principal points, views and clouds at random."""
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
    r = lambda *s: torch.randn(*s, generator=g)
    values = dict(means=r(n, 3)*.6, quats=r(n, 4), scales=size*(.8*r(n, 3)).exp(), opacities=torch.sigmoid(2*r(n)), colors=torch.rand(n, channels, generator=g))
    return {k: v.to(f64) for k, v in values.items()}


def leaves(s, dtype):
    return {k: v.to(dtype).clone().requires_grad_() for k, v in s.items()}


def compare(s, w2c, K, W, H, bound, dtype=torch.float32, antialiased=False, band=1e-4):
    "Picture, depth, alpha and every gradient of one view, relative L2 over the pixels which no threshold decides."
    s = dict(s, viewmats=w2c)
    f, d = leaves(s, dtype), leaves(s, f64)
    mode = "antialiased" if antialiased else "classic"
    img, alpha, _ = rasterization(*(f[k] for k in NAMES), f["viewmats"][None], K[None].to(dtype), W, H, render_mode="RGB+D", rasterize_mode=mode)
    color, want_alpha, depth = rasterize_reference(*(d[k] for k in NAMES), d["viewmats"], K, W, H, antialiased=antialiased)
    with torch.no_grad(): ok = unambiguous_pixels(*(s[k] for k in NAMES), w2c, K, W, H, antialiased, band=band)
    got, want = torch.cat([img, alpha], -1)[0], torch.cat([color, depth[..., None], want_alpha[..., None]], -1)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))*ok[..., None]
    assert ((got - want)*ok[..., None]).norm() <= bound*want.norm()
    (got*weight).sum().backward()
    (want*weight).sum().backward()
    for k in f: assert (f[k].grad - d[k].grad).norm() <= bound*d[k].grad.norm() + 1e-9, k
    return ok


@given(st.integers(0, 10**6), st.integers(1, 70), st.integers(1, 70), st.integers(1, 400), st.sampled_from([1, 2, 3, 4, 7]), st.floats(-.3, 1.3), st.floats(-.3, 1.3), st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_against_twin(seed, W, H, n, channels, cx, cy, antialiased):
    cams = orbit([float(seed % 360)], float(seed % 80 - 40), 2.2, 45., 64)
    K, w2c = cams.K[0].float().to(f64), cams.w2c[0].float().to(f64)
    K[0, 0] *= 1.25
    K[0, 2], K[1, 2] = round(W*cx), round(H*cy)
    compare(cloud(seed, n, channels), w2c, K, W, H, 1e-5, antialiased=antialiased)


@pytest.mark.parametrize("size", [.02, .06, .4])
def test_bound_on_whole_pictures(size):
    cams = orbit([40.], 15., 2.2, 45., 64)
    ok = compare(cloud(7, 600, size=size), cams.w2c[0].float().to(f64), cams.K[0].float().to(f64), 61, 53, 1e-5)
    assert ok.double().mean() > .9


def test_double_precision():
    cams = orbit([70.], -20., 2.2, 45., 64)
    compare(cloud(11, 300), cams.w2c[0].to(f64), cams.K[0].to(f64), 45, 37, 1e-11, dtype=f64, antialiased=True, band=1e-9)


def test_twin_would_notice_a_transposed_intrinsic_matrix():
    s = {k: v.float() for k, v in cloud(3, 50).items()}
    cams = orbit([20.], 10., size=32)
    img, _, _ = rasterization(*(s[k] for k in NAMES), cams.w2c, cams.K, 32, 32)
    want, _, _ = rasterize_reference(*(v.double() for v in s.values()), cams.w2c[0].double(), cams.K[0].double().mT, 32, 32)
    assert (img[0] - want).abs().max() > .01


def test_gsplat_projects_the_same():
    impl = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat, whose torch projection is the oracle here, is not installed")
    s = cloud(5, 200)
    cams = orbit([40.], 25., size=64)
    w2c, K = cams.w2c.to(f64), cams.K.to(f64).clone()
    K[0, 0, 0] *= 1.2
    K[0, 0, 2] += 5
    covars, _ = impl._quat_scale_to_covar_preci(s["quats"], s["scales"], compute_preci=False)
    radii, means2d, depths, conics, comp = impl._fully_fused_projection(s["means"], covars, w2c, K, 64, 64, calc_compensations=True)
    ones = torch.ones_like(s["opacities"])
    _, _, meta = rasterization(s["means"], s["quats"], s["scales"], ones, s["colors"], w2c, K, 64, 64, rasterize_mode="antialiased")
    seen = (meta["radii"] > 0).all(-1)
    assert seen.sum() > 150 and (radii[seen] > 0).all()
    for k, want in dict(means2d=means2d, conics=conics, depths=depths, opacities=comp).items():
        assert (meta[k][seen] - want[seen]).abs().max() < 1e-6*want[seen].abs().max(), k


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_against_twin(degree):
    "Gradients of coefficients, means and cameras where colour depends on the view; gsplat's torch code evaluates the twin's harmonics."
    impl = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat, whose torch harmonics are the oracle here, is not installed")
    cams = orbit([40.], 25., 2.2, 45., 64)
    w2c, K, W, H = cams.w2c[0].float().to(f64), cams.K[0].float().to(f64), 53, 41
    K[0, 0], K[0, 2], K[1, 2] = K[0, 0]*1.25, 20., 26.
    s = cloud(9, 150)
    del s["colors"]
    s["sh"] = (torch.randn(150, 16, 3, generator=torch.Generator().manual_seed(3))*.3).to(f64)
    s = dict(s, viewmats=w2c)
    f, d = leaves(s, torch.float32), leaves(s, f64)
    img, alpha, _ = rasterization(*(f[k] for k in (*NAMES[:4], "sh")), f["viewmats"][None], K[None].float(), W, H, sh_degree=degree)
    dirs = d["means"] - torch.linalg.inv(d["viewmats"])[:3, 3]
    colors = (impl._spherical_harmonics(degree, dirs, d["sh"]) + .5).clamp(min=0)
    want, _, _ = rasterize_reference(*(d[k] for k in NAMES[:4]), colors, d["viewmats"], K, W, H)
    with torch.no_grad(): ok = unambiguous_pixels(*(s[k] for k in NAMES[:4]), colors, w2c, K, W, H)[..., None]
    assert ok.double().mean() > .9
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))*ok
    (img[0]*weight).sum().backward()
    (want*weight).sum().backward()
    for k in f: assert (f[k].grad - d[k].grad).norm() <= 1e-5*d[k].grad.norm() and d[k].grad.any(), k


def gradients(n_threads, *tensors, **kw):
    x = [v.clone().requires_grad_() for v in tensors]
    cams = orbit([0, 100, 200], 20., size=50)
    with num_threads(n_threads):
        img, alpha, _ = rasterization(*x, cams.w2c.expand(*x[0].shape[:-2], 3, 4, 4), cams.K.expand(*x[0].shape[:-2], 3, 3, 3), 50, 41, **kw)
    (img.sin().sum() + alpha.square().sum()).backward()
    return [img, alpha, *(v.grad for v in x)]


@pytest.mark.parametrize("n", [1, 37, 9000])
def test_threads_and_batches_change_no_bit(n):
    a, b = ([v.float() for v in cloud(seed, n).values()] for seed in (1, 2))
    one = gradients(1, *a)
    for n_threads in (2, 3, 5): assert all(torch.equal(x, y) for x, y in zip(one, gradients(n_threads, *a)))
    both = gradients(2, *(torch.stack(p) for p in zip(a, b)))
    assert all(torch.equal(x, torch.stack(p)) for x, p in zip(both, zip(one, gradients(1, *b))))


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
@pytest.mark.parametrize("n", [0, 5])
def test_nothing_to_see(n, mode):
    s = {k: v.float() for k, v in cloud(1, n).items()}
    s["means"] = s["means"] + 1000.
    x = leaves(s, torch.float32)
    cams = orbit([0, 90], 0., size=9)
    img, alpha, _ = rasterization(*x.values(), cams.w2c, cams.K, 9, 7, backgrounds=torch.full((2, 3), .25), render_mode=mode)
    img.sum().backward()
    want = [.25]*3*("RGB" in mode) + [0.]*("D" in mode)
    assert torch.equal(img, torch.tensor(want).expand(2, 7, 9, -1)) and not alpha.any()
    assert not any(v.grad.any() for v in x.values() if v.grad is not None)


@given(st.integers(0, 10**6), st.sampled_from(["nan", "inf", "-inf"]), st.sampled_from(NAMES), st.sampled_from([None, 0, 1, 3]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_one_bad_number_harms_only_its_gaussian(seed, bad, where, degree):
    s = {k: v.float() for k, v in cloud(seed, 12).items()}
    if degree is not None: s["colors"] = torch.randn(12, 16, 3, generator=torch.Generator().manual_seed(seed))
    i = seed % 12
    good = {k: torch.cat([v[:i], v[i + 1:]]) for k, v in s.items()}
    s[where][i].view(-1)[(seed//12) % min(3, s[where][i].numel())] = float(bad)
    cams = orbit([float(seed % 360)], 10., size=20)
    x, y = leaves(s, torch.float32), leaves(good, torch.float32)
    pics = [rasterization(*z.values(), cams.w2c, cams.K, 20, 20, sh_degree=degree)[0] for z in (x, y)]
    for p in pics: p.square().sum().backward()
    assert torch.equal(*pics)
    for k in x:
        assert not x[k].grad[i].any() and torch.equal(torch.cat([x[k].grad[:i], x[k].grad[i + 1:]]), y[k].grad), k


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_have_a_gradient_through_the_direction(degree):
    s = {k: v.float() for k, v in cloud(4, 30).items()}
    g = Gaussians(*(s[k].requires_grad_() for k in NAMES[:4]), torch.randn(30, 16, 3).requires_grad_())
    cams = orbit([0, 120], 10., size=24)
    pics, _ = render(g, cams, sh_degree=degree)
    pics.square().sum().backward()
    used = g.sh.grad.abs().sum((0, 2)) > 0
    assert used.tolist() == [k < (degree + 1)**2 for k in range(16)]
    per_view = [render(g, cams[v], sh_degree=degree)[0][0] for v in range(2)]
    assert torch.equal(pics, torch.stack(per_view))


def test_second_derivative_is_refused():
    s = {k: v.float().requires_grad_() for k, v in cloud(4, 5).items()}
    cams = orbit([0], 10., size=12)
    img, _, _ = rasterization(*s.values(), cams.w2c, cams.K, 12, 12)
    g, = torch.autograd.grad(img.square().sum(), s["means"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"): g.sum().backward()


DRAW = """import torch
from gslrm_mouse.gaussians import cpu_kernels as r
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.gaussians.rasterize import rasterization
c = orbit([0], 0., size=16)
x = [torch.zeros(1, 3), torch.ones(1, 4), torch.ones(1, 3), torch.ones(1), torch.ones(1, 3)]
if WHOLE: rasterization(*(v.requires_grad_() for v in x), c.w2c, c.K, 16, 16)[0].sum().backward()
else: r._span(1., 1., 4)
kernels = (r._project, r._bin, r._blend, r._blend_backward, r._sum_slots, r._project_backward, r._span)
print(r.__file__, sum(sum(k.stats.cache_hits.values()) for k in kernels), sum(sum(k.stats.cache_misses.values()) for k in kernels))"""


def test_compiled_kernels_survive_a_reinstall(tmp_path):
    "Same sources with new time stamps: nothing is compiled again. Other sources: everything is."
    package = Path(cpu_kernels.__file__).parents[1]
    def install(): shutil.copytree(package, tmp_path/"gslrm_mouse", dirs_exist_ok=True, copy_function=shutil.copy, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    def draw(whole=True):
        env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")} | {"PYTHONPATH": str(tmp_path)}
        out = subprocess.run([sys.executable, "-c", f"WHOLE = {whole}\n{DRAW}"], env=env, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split()
        assert Path(out[0]).is_relative_to(tmp_path)
        return int(out[1]), int(out[2])
    install()
    assert draw()[0] == 0
    install()
    assert draw() == (6, 0)
    with open(tmp_path/"gslrm_mouse/gaussians/cpu_kernels.py", "a") as f: f.write("# changed\n")
    assert draw(whole=False) == (0, 1)
