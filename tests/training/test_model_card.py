"""The model card of a checkpoint trained on varied cameras: its domain, and its scores in varied cameras."""
import math

import pytest
import torch
from gslrm_mouse.models.checkpoint import ModelCard, load_checkpoint, read_card, save_checkpoint, shipped_checkpoint
from gslrm_mouse.models.gslrm import GSLRM
from gslrm_mouse.training.loop import update_card
from gslrm_mouse.training.settings import settings_from, to_plain_dict
from gslrm_mouse.cameras.domain import CameraDomain

torch.set_num_threads(1)
SIZE = 16


def checkpoint(path, **dataset):
    dataset = dict(dataset_path="procedural", kinds=["head", "object"], n_scenes=20, num_views=12) | dataset
    s = settings_from(dict(
        model=dict(image_tokenizer=dict(image_size=SIZE), transformer=dict(d=64, d_head=32, n_layer=1)),
        training=dict(dataset=dataset, schedule=dict(max_fwdbwd_passes=1))), where="a test")
    torch.manual_seed(0)
    facts = dict(settings=to_plain_dict(s), data=dict(source="procedural"), steps=7)
    domain = CameraDomain(image_size=SIZE, n_views=(2, 5), distance=(1., 9.))
    return save_checkpoint(path, GSLRM(s.config), ModelCard(s.config, domain, facts), torch.float16)


def test_the_domain_of_varied_cameras_is_measured(tmp_path):
    variety = dict(fov=[20., 40.], visible=[.5, 1.], canonical_share=.3, distance=.1, focal=.05, aspect=.02)
    path = checkpoint(tmp_path/"m.safetensors", camera_variety=variety, elevation=[3., 30.])
    before = load_checkpoint(path)[0].state_dict()
    model, card = load_checkpoint(update_card(path, n_eval=1))
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
    d = card.domain
    assert d.canonical == (50., 2.7) and d.n_views == (2, 5) and d.elevation == (3., 30.) and d.image_size == SIZE
    longest = 1.05/math.sqrt(.98) # focal length, relative to that of the drawn field of view
    narrowest = 2*math.degrees(math.atan(math.tan(math.radians(10))/longest))
    assert d.fov[1] == 50. and narrowest < d.fov[0] < 20. # the canonical camera is the widest here
    canonical = 2*2.7*math.tan(math.radians(25))
    assert .45*canonical*.95 < d.visible[0] < .55*canonical and 1.05*canonical < d.visible[1] < 1.1*1.06*canonical
    assert .98 <= d.aspect[0] < .985 and 1.015 < d.aspect[1] <= 1.02
    assert card.training["steps"] == 7 and set(card.training["held_out_varied"]) == {"head", "object", "mouse"}
    assert card.training["held_out_varied"]["head"] != card.training["held_out"]["head"]


def test_a_card_of_one_camera_has_no_such_fields(tmp_path):
    path = update_card(checkpoint(tmp_path/"m.safetensors"), n_eval=1)
    card = read_card(path)
    assert not card.domain.is_varied and "held_out_varied" not in card.training
    assert card.domain.distance == (2.7, 2.7) # measured anew: it was wrong


def test_the_shipped_card_of_varied_cameras():
    one, many = (read_card(shipped_checkpoint(name)) for name in ("gslrm_64", "gslrm_any"))
    assert not one.domain.is_varied and many.domain.is_varied and one.config == many.config
    assert many.domain.fov[0] < 10 and many.domain.fov[1] > 55 and many.domain.mean_visible == pytest.approx(2., abs=.1)
    canonical, varied = many.training["held_out"]["head"], many.training["held_out_varied"]["head"]
    assert canonical["iou"] - varied["iou"] < .01
    assert canonical["pictures"] == varied["pictures"]


def test_only_procedural_scenes_can_be_measured_anew(tmp_path, monkeypatch):
    path = checkpoint(tmp_path/"m.safetensors")
    monkeypatch.setattr("gslrm_mouse.training.loop.build_dataset", lambda *_: object())
    with pytest.raises(ValueError, match="not on procedural scenes"): update_card(path, n_eval=1)
