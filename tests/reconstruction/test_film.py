"""What turntables and films are framed on: the whole animal with its tail, and no floater."""
from dataclasses import replace

import pytest
import torch

from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.reconstruction import film


def cloud(means, scale, opacity):
    n = len(means)
    return Gaussians(
        means=means, quats=torch.tensor([1., 0, 0, 0]).expand(n, 4), scales=torch.full((n, 3), scale),
        opacities=torch.full((n,), opacity), sh=torch.zeros(n, 1, 3), unit="mm")


def joined(*clouds):
    fields = ("means", "quats", "scales", "opacities", "sh")
    return replace(clouds[0], **{name: torch.cat([getattr(g, name) for g in clouds]) for name in fields})


@pytest.fixture(scope="module")
def mouse():
    "A body of 60 mm and a tail of 120 mm, which has 0.3 % of the opacity."
    rng = torch.Generator().manual_seed(0)
    sphere = torch.nn.functional.normalize(torch.randn(4000, 3, generator=rng), dim=-1)
    body = cloud(sphere*torch.tensor([30., 15, 15]), 1.5, .8)
    x = torch.linspace(30, 150, 24)
    tail = cloud(torch.stack([x, .1*x, 0*x], -1), 2., .4)
    return joined(body, tail)


def test_no_image_of_a_turntable_cuts_the_tail_off(mouse):
    _, alpha = render(mouse, film.turntable_cameras(mouse, 24, 96))
    border = torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], 1)
    assert border.max() == 0
    columns = (alpha > .2).any(1)
    assert columns.sum(1).max() > .7*96 # and fills the image where it is seen from its side


@pytest.mark.parametrize("distance", [250., 1000.])
def test_a_floater_is_not_framed(mouse, distance):
    floaters = cloud(torch.tensor([[0., 0, distance], [0, -distance, 0]]), 2., .8)
    with_floaters = joined(mouse, floaters)
    center, radius = film.enclosing_ball(mouse)
    assert radius == pytest.approx(94, abs=4)
    moved, larger = film.enclosing_ball(with_floaters)
    assert (moved - center).norm() < .5 and abs(larger - radius) < .5
    assert film.cloud_radius(with_floaters, center) == pytest.approx(film.cloud_radius(mouse, center), abs=.5)


def test_a_large_cloud_is_framed_by_a_selection(mouse, monkeypatch):
    whole = film.enclosing_ball(mouse)
    monkeypatch.setattr(film, "_MOST", 2500)
    center, radius = film.enclosing_ball(mouse)
    assert (center - whole[0]).norm() < 3 and radius == pytest.approx(whole[1], abs=4)
