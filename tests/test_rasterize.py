"""Kernels against the float64 twin on scenes nobody chose: sizes, principal points, views and clouds at random."""
import pytest
import torch
from gslrm_mouse.cameras import orbit
from gslrm_mouse.rasterize import rasterization, rasterize_reference

NAMES = ("means", "quats", "scales", "opacities", "colors")


def cloud(seed, n):
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)
    return dict(means=r(n, 3)*.6, quats=r(n, 4), scales=.06*(.8*r(n, 3)).exp(), opacities=torch.sigmoid(2*r(n)), colors=torch.rand(n, 3, generator=g, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(12))
def test_against_twin(seed):
    g = torch.Generator().manual_seed(100 + seed)
    W, H, n = (int(torch.randint(a, b, (1,), generator=g)) for a, b in ((1, 70), (1, 70), (1, 400)))
    cams = orbit([float(torch.rand(1, generator=g)*360)], float(torch.rand(1, generator=g)*80 - 40), 2.2, 45., 64)
    K, w2c = cams.K[0].double().clone(), cams.w2c[0].double()
    K[0, 0] *= 1.2
    K[0, 2], K[1, 2] = W*.3, H*.8
    s = cloud(seed, n)
    with torch.no_grad():   # pixels whose picture hangs on a threshold are left out
        lo, hi = (rasterize_reference(**dict(s, opacities=s["opacities"]*f), viewmat=w2c, K=K, width=W, height=H)[1] for f in (1 - 1e-4, 1 + 1e-4))
    ok = (lo - hi).abs() < 1.5e-3
    f = {k: v.float().requires_grad_() for k, v in s.items()}
    d = {k: v.clone().requires_grad_() for k, v in s.items()}
    img, alpha, _ = rasterization(*(f[k] for k in NAMES), w2c[None].float(), K[None].float(), W, H)
    want, want_alpha, _ = rasterize_reference(*(d[k] for k in NAMES), w2c, K, W, H)
    assert ((img[0] - want)*ok[..., None]).abs().max() < 2e-5
    assert ((alpha[0, ..., 0] - want_alpha)*ok).abs().max() < 2e-5
    weight = torch.randn(H, W, 3, generator=g)*ok[..., None]
    (img[0]*weight).sum().backward()
    (want*weight).sum().backward()
    for k in NAMES:
        assert (f[k].grad - d[k].grad).norm() <= 5e-5*d[k].grad.norm() + 1e-6, k


def test_twin_would_notice_a_wrong_gradient():
    s = {k: v.float().requires_grad_() for k, v in cloud(3, 50).items()}
    cams = orbit([20.], 10., size=32)
    img, _, _ = rasterization(*(s[k] for k in NAMES), cams.w2c, cams.K, 32, 32)
    img.square().sum().backward()
    d = {k: v.detach().double().requires_grad_() for k, v in s.items()}
    want, _, _ = rasterize_reference(*(d[k] for k in NAMES), cams.w2c[0].double(), cams.K[0].double().mT, 32, 32)   # K transposed
    assert (img[0] - want).abs().max() > .01


def test_gsplat_projects_the_same():
    impl = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat, whose torch projection is the oracle here, is not installed")
    s = cloud(5, 200)
    cams = orbit([40.], 25., size=64)
    K = cams.K.double().clone()
    K[0, 0, 0] *= 1.2
    K[0, 0, 2] += 5
    covars, _ = impl._quat_scale_to_covar_preci(s["quats"], s["scales"], True, False, triu=False)
    radii, means2d, depths, conics, _ = impl._fully_fused_projection(s["means"][None] if False else s["means"], covars, cams.w2c.double(), K, 64, 64)
    i = int((radii[0] > 0).all(-1).nonzero()[7])
    one = {k: v[i:i + 1] for k, v in s.items()}
    one["opacities"] = torch.ones(1, dtype=torch.float64)*.9
    alpha = rasterize_reference(**one, viewmat=cams.w2c[0].double(), K=K[0], width=64, height=64)[1]
    y, x = torch.meshgrid(torch.arange(64) + .5, torch.arange(64) + .5, indexing="ij")
    dx, dy = means2d[0, i, 0] - x, means2d[0, i, 1] - y
    a, b, c = conics[0, i]
    want = .9*torch.exp(-.5*(a*dx*dx + c*dy*dy) - b*dx*dy)
    want[want < 1/255] = 0
    assert (alpha - want).abs().max() < 1e-6
