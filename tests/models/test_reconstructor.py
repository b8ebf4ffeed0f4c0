"The interface of models: what a generator needs of it, and how GS-LRM and LGM stand behind it."
from dataclasses import dataclass, replace

import pytest
import torch

from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN, CameraDomain
from gslrm_mouse.cameras.perturb import zoomed
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.models.lgm import LGM, LGMConfig
from gslrm_mouse.models.reconstructor import GSLRMReconstructor, LGMReconstructor, Reconstructor
from gslrm_mouse.preprocess.silhouettes import ModelInput
from gslrm_mouse.scenes.bodies import canonical_scene
from gslrm_mouse.scenes.tracer import raytrace


@dataclass(frozen=True, kw_only=True)
class OneView(Reconstructor):
    "A stand-in for a generator: one view, no cameras, a sampled answer, the depth as an assumption."
    name:str = "one view"
    n_views:tuple = (1, 1)
    conditioning:str = "none"
    gauge:str = "depth"
    domain:CameraDomain = FACELIFT_DOMAIN
    depth:float = 3. # assumed, in the unit of the recording

    def prepare(self, views, up=None):
        first = views[0]
        to_source = Similarity(.5, first.cameras.R[0].double().T,
                               first.cameras.centers[0].double() + self.depth*first.cameras.axes[0].double(),
                               "model", first.cameras.unit)
        return ModelInput(replace(first, cameras=to_source.inverse.cameras(first.cameras)), to_source, "assumed depth")

    def predict(self, views, seed=0):
        means = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        colour = views.images.mean((0, 1, 2)).expand(5, 1, 3)
        return Gaussians(means, torch.tensor([[1., 0., 0., 0.]]).expand(5, 4), torch.ones(5, 3), torch.ones(5), colour)


@pytest.fixture(scope="module")
def views():
    cams = orbit([0., 80., 170., 275., 130.], [10., 25., 5., 15., 40.], distance=3.1, fov=40., size=48)
    return raytrace(canonical_scene("head", 5), cams, 2)


def test_a_generator_fits(views):
    model = OneView()
    g = model(views, seed=3)
    expected = model.predict(model.prepare(views).views, 3)
    center = views.cameras.centers[0] + 3*views.cameras.axes[0]
    assert torch.allclose((g.means - center).norm(dim=-1), .5*expected.means.norm(dim=-1), atol=1e-5)
    assert torch.allclose(g.scales, torch.full((5, 3), .5))
    assert not torch.equal(g.means, model(views, seed=4).means)

    prepared = model.prepare(views)
    misinformed = replace(prepared.views, cameras=zoomed(prepared.views.cameras, 2.))
    assert torch.equal(model.predict(misinformed).means, model.predict(prepared.views).means) # nothing is given


def test_the_networks_are_given_their_own_views(views):
    gslrm = GSLRMReconstructor(
        network=GSLRM(GSLRMConfig(image_size=16, d=32, d_head=16, n_layer=1)).eval(),
        domain=replace(FACELIFT_DOMAIN, image_size=16))
    config = LGMConfig(
        down=(32, 32), down_attention=(False, True), up=(32, 32), up_attention=(True, False), image_size=16)
    lgm = LGMReconstructor(network=LGM(config).eval())
    assert (len(gslrm(views)), len(lgm(views))) == (2 + 5*16*16, 4*16*16)

    for model in (gslrm, lgm):
        prepared = model.prepare(views)
        g = model.predict(prepared.views)
        assert g.means.requires_grad is False
        assert torch.equal(model(views, seed=1).means, g.transform(prepared.to_source).means)
        misinformed = replace(prepared.views, cameras=zoomed(prepared.views.cameras, 2.))
        assert not torch.equal(model.predict(misinformed).means, g.means)

    with pytest.raises(ValueError, match="LGM needs at least 4 views, got 3"): lgm(views[:3])


def test_what_is_missing_is_an_error():
    with pytest.raises(TypeError, match="abstract"):
        Reconstructor(name="x", n_views=(1, 1), conditioning="none", gauge="none", domain=FACELIFT_DOMAIN)
    with pytest.raises(ValueError, match="one of rays, fixed rays, relative, angles, none, got 'pose'"):
        OneView(conditioning="pose")
    with pytest.raises(ValueError, match="the fewest and the most input views"): OneView(n_views=(0, 1))
