"""A cloud that was moved by a known similarity comes back; its mirror image does not."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from gslrm_mouse.cameras.pinhole import orbit
from gslrm_mouse.cameras.rotations import rotvec_to_matrix
from gslrm_mouse.cameras.similarity import Similarity
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.gaussians.registration import RegistrationSettings, register_silhouettes
from gslrm_mouse.views.views import Views, pad_views

torch.set_num_threads(1)
RIG = orbit([20, 110, 200, 320], [10., 40, 0, 25], size=48)


def hook():
    "Three arms of different lengths, along three axes: no two sides of it look alike."
    steps = torch.linspace(0, 1, 9)[:, None]
    arms = [steps*torch.tensor([.7, 0., 0.]), steps*torch.tensor([0., .35, 0.]), steps*torch.tensor([0., .15, .45])]
    means = torch.cat(arms) - torch.tensor([.2, .1, .1])
    n = len(means)
    return Gaussians(means, torch.tensor([[1., 0, 0, 0]]*n), torch.full((n, 3), .06), torch.full((n,), .95),
                     torch.zeros(n, 1, 3))


def views_of(g, cams=RIG):
    alpha = render(g, cams)[1]
    return Views(torch.ones(*alpha.shape, 3), alpha, cams)


@pytest.mark.parametrize("rotvec, scale, shift", [
    ([.1, -.15, 2.4], .6, [.3, -.2, .1]),
    ([-.2, .1, -1.2], 1.7, [-.5, .1, .3])])
def test_a_known_similarity_is_found(rotvec, scale, shift):
    g = hook()
    known = Similarity(scale, torch.from_numpy(rotvec_to_matrix(rotvec)), torch.tensor(shift))
    found = register_silhouettes(g.transform(known), views_of(g))
    back = found.similarity @ known
    assert abs(back.scale - 1) < .03
    assert (back(g.means) - g.means).norm(dim=-1).max() < .06
    assert found.iou > .9 > found.iou_before + .2


def test_a_mirror_image_does_not_fit():
    g = hook()
    mirrored = replace(g, means=g.means*torch.tensor([1., -1., 1.]))
    assert register_silhouettes(mirrored, views_of(g)).iou < .85


def test_the_starts_turn_about_the_given_up():
    "The same problem in a world whose up is x."
    turn = Similarity(1., torch.tensor([[0., 0., 1.], [1., 0., 0.], [0., 1., 0.]], dtype=torch.float64)) # z → x
    g, known = hook(), Similarity(.8, torch.from_numpy(rotvec_to_matrix([0., 0., 2.9])), torch.tensor([.2, 0., 0.]))
    elsewhere = g.transform(turn)
    lost = g.transform(known).transform(turn)
    views = views_of(elsewhere, turn.cameras(RIG))
    found = register_silhouettes(lost, views, up=torch.tensor([1., 0., 0.]))
    assert found.iou > .9


def test_nothing_gets_worse_and_nothing_is_not_registered():
    g = hook()
    short = RegistrationSettings(azimuths=0, coarse_steps=(1,), fine_steps=1)
    at_rest = register_silhouettes(g, views_of(g), short)
    assert at_rest.iou >= at_rest.iou_before > .99
    empty = replace(g, opacities=torch.full_like(g.opacities, .01))
    with pytest.raises(ValueError, match="none of the 27 Gaussians has an opacity above 0.05"):
        register_silhouettes(empty, views_of(g))


def test_the_frame_of_a_rig_in_millimetres():
    g = hook()
    to_mm = Similarity(100., None, torch.tensor([50., 40., 10.]), "model", "mm")
    in_mm, rig = g.transform(to_mm), to_mm.cameras(RIG)
    off = in_mm.transform(Similarity(1.2, None, torch.tensor([8., 0., -3.]), "mm", "mm"))
    found = register_silhouettes(off, views_of(in_mm, rig))
    assert (found.similarity.source, found.similarity.target) == ("mm", "mm")
    assert found.iou > .9
    assert np.isclose(found.similarity.scale, 1/1.2, rtol=.03)


def test_a_smaller_image_that_cuts_the_object_counts_as_far_as_it_goes():
    g = hook()
    half = RIG.width//2
    views = [views_of(g, RIG[[i]]) for i in range(len(RIG))]
    cut = replace(views[0], images=views[0].images[:, :, :half], alpha=views[0].alpha[:, :, :half],
                  cameras=replace(views[0].cameras, width=half))
    assert (cut.alpha[0, :, -1] > .5).any() # the object goes on beside it
    short = RegistrationSettings(azimuths=0, coarse_steps=(1,), fine_steps=1)
    assert register_silhouettes(g, pad_views([cut, *views[1:]]), short).iou_before > .99
