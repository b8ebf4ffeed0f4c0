"""`choose="object"`: exact, one zoom as large as all views allow, and as wide as the checkpoint's images."""
from dataclasses import replace

import pytest
import torch
from fastcore.test import test_close as close
from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.perturb import at_distance, spread_factors
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.preprocess.canonical import canonicalize
from gslrm_mouse.preprocess.certificate import domain_gaps, domain_size
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.tracer import raytrace

torch.set_num_threads(1)
DOMAIN = replace(FACELIFT_DOMAIN, image_size=96)
VARIED = replace(DOMAIN, fov=(8., 64.), distance=(1., 20.), canonical=(50., 2.7), visible=(1.5, 3.))


@pytest.fixture(scope="module")
def scene():
    return mouse_scene(7)


@pytest.fixture(scope="module")
def views(scene):
    return raytrace(scene, mouse_rig().resized(576, 512), 2)


def reach(alpha): # of the farthest silhouette pixel's centre, relative to the border
    yx = (alpha > .5).nonzero().double() + .5
    middle = alpha.shape[-1]/2
    return (yx - middle).abs().max().item()/middle


def widths(p): # seen at the object
    cams = p.views.cameras
    return cams.width*cams.centers.norm(dim=-1)/cams.K[:, 0, 0]


def test_it_equals_what_such_cameras_would_have_taken(scene, views):
    p = canonicalize(views, DOMAIN, choose="object")
    assert p.exact and type(p).__name__ == "Canonical"
    taken = raytrace(scene.transform(p.to_source.inverse), p.views.cameras, 4)
    assert (taken.alpha - p.views.alpha).abs().mean() < 4e-3
    assert (taken.alpha - p.views.alpha.roll(1, -1)).abs().mean() > 8e-3 # an error of one pixel would show
    assert (taken.images - p.views.images).abs().mean() < 4e-3


def test_one_zoom_is_as_tight_as_all_views_allow(views):
    p = canonicalize(views, DOMAIN, choose="object")
    reached = [reach(alpha) for alpha in p.views.alpha]
    assert .93 < max(reached) < .99 # 97 %, and a pixel of edge
    for v in p.certificate.views:
        assert v.cut == 0 and v.bound_px == 0
    assert max(v.fov for v in p.certificate.views) - min(v.fov for v in p.certificate.views) < 1e-6
    assert min(reached) < .7
    sideways = [i for i in range(6) if reached[i] < .7] # these alone allow more
    assert canonicalize(views[sideways], DOMAIN, choose="object").certificate.views[0].fov < v.fov - 3


@pytest.mark.parametrize("domain, width", [(DOMAIN, 2.51806), (VARIED, 4.5**.5)])
def test_the_mean_width_is_the_checkpoints(views, domain, width):
    p = canonicalize(views, domain, choose="object")
    assert widths(p).mean().item() == pytest.approx(width, rel=1e-5)
    assert domain_size(domain) == pytest.approx(sum(domain.coverage)/2*width, rel=1e-5)


def test_a_share_of_the_silhouette_may_be_cut(views):
    whole = canonicalize(views, DOMAIN, choose="object").certificate.views
    with_cut = canonicalize(views, DOMAIN, choose="object", cut=.1)
    parts = with_cut.certificate.views
    cuts = [v.cut for v in parts]
    assert 0 < max(cuts) <= .1
    assert f"{max(cuts):.1%} of a silhouette lies outside its image" in with_cut.statement
    assert all(f"cut {v.cut:6.1%}" in row for v, row in zip(parts, str(with_cut.certificate).splitlines()[1:]))
    assert "outside its image" not in canonicalize(views, DOMAIN, choose="object").statement
    assert all(cut.fov < v.fov and cut.coverage > v.coverage for cut, v in zip(parts, whole))


def test_unit_and_uneven_distances_do_not_matter(scene):
    rig = mouse_rig().resized(576, 512)
    center = scene.center.double()
    shift = Similarity(1., None, -center, "mm", "mm")
    uneven = shift.inverse.cameras(at_distance(shift.cameras(rig), 317*spread_factors(6, .2, 3)))
    recorded = raytrace(scene, uneven, 1)
    metres = Similarity(1e-3, None, torch.tensor([5., -2., 1.]), "mm", "m")
    a = canonicalize(recorded, DOMAIN, choose="object")
    b = canonicalize(replace(recorded, cameras=metres.cameras(uneven)), DOMAIN, choose="object")
    close(a.views.cameras.w2c, b.views.cameras.w2c, eps=1e-5)
    close(a.views.cameras.K, b.views.cameras.K, eps=1e-4)
    distances = a.views.cameras.centers.norm(dim=-1)
    assert (distances.std()/distances.mean()).item() > .1 # kept, not equalised


def test_a_varied_checkpoint_knows_such_cameras(views):
    p = canonicalize(views, VARIED, choose="object")
    for v in p.certificate.views:
        gaps = domain_gaps(v, VARIED)
        assert gaps["fov"] == gaps["distance"] == 0
        assert domain_gaps(v, DOMAIN)["fov"] < -5
    assert "visible" in gaps and "visible" not in domain_gaps(v, DOMAIN)
    canonical = canonicalize(views, VARIED).views.cameras
    close(canonical.K, canonicalize(views, DOMAIN).views.cameras.K, eps=1e-4)
    close(canonical.w2c, canonicalize(views, DOMAIN).views.cameras.w2c, eps=1e-9)


@pytest.mark.parametrize("options, message", [
    (dict(choose="object", zoom=2.), "only"), (dict(cut=.1), "for 'object' only"),
    (dict(choose="object", cut=.5), "below one half"), (dict(choose="object", cut=-.1), "below one half")])
def test_options_that_do_not_belong_together(views, options, message):
    with pytest.raises(ValueError, match=message): canonicalize(views, DOMAIN, **options)
