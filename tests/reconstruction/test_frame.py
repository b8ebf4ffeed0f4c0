"""The scores of a frame's input views: of what the cameras saw, and of nothing beyond their images."""
from dataclasses import replace

import pytest
import torch

from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.gaussians.surface import surface_gaussians
from gslrm_mouse.models.named import open_model
from gslrm_mouse.preprocess.canonical import cropped
from gslrm_mouse.reconstruction import frame
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.views.views import pad_views

RIG = mouse_rig().resized(288, 256)


@pytest.fixture(scope="module")
def views():
    return raytrace(mouse_scene(100), RIG, 2)


@pytest.fixture(scope="module")
def cut(views):
    "The image of camera 0 ends in the middle of the animal."
    columns = (views.alpha[0] > .5).any(0).nonzero()[:, 0]
    width = (columns[0] + columns[-1]).item()//2
    return pad_views([cropped(views[[0]], 0, 0, width, 256), *(views[[i]] for i in range(1, 6))])


def split_of(views, g, tiny_checkpoint, **options):
    options = frame.ReconstructOptions(quality="draft", **options)
    model = open_model("gslrm", tiny_checkpoint, None, None, "cpu")
    maker = frame.FrameMaker(model, options, of_recording=True, tag={})
    one = frame._frame(views, 0, maker)
    prepared, _ = frame._prepare(one.input_views, maker)
    return frame._input_split(one, prepared, g, maker), prepared


def test_what_no_camera_saw_is_not_scored(views, cut, tiny_checkpoint):
    g = surface_gaussians(views, 64, thin=True)
    whole, _ = split_of(views, g, tiny_checkpoint)
    split, prepared = split_of(cut, g, tiny_checkpoint)
    _, alphas, scores = frame._rendered(g.transform(prepared.to_source.inverse), prepared.views)
    iou = {name: x[0]["iou"] for name, x in dict(whole=whole.scores, cut=split.scores, everywhere=scores).items()}
    assert iou["everywhere"] < .4, iou # half of the animal lies outside
    assert .75 < iou["cut"] < iou["whole"] + .05, iou # of some 20 pixels each, those at the cut count more
    is_unseen = (alphas[0] > .5) & (split.alphas[0] == 0)
    assert is_unseen.sum() > 20 and (split.images[0][is_unseen] == 1).all()
    for i in (1, 2, 4, 5): # where nothing is cut, nothing changes; in camera 3 the tail reaches the border
        assert split.scores[i] == pytest.approx(scores[i])


def test_seen_is_what_lies_inside(cut):
    same = frame._seen(cut, cut.cameras)
    sizes = cut.cameras.image_sizes.tolist()
    assert [seen.sum().item() for seen in same] == [width*height for width, height in sizes]
    K = cut.cameras.K.clone()
    K[:, :2, 2] += torch.tensor([40., 0]) # the image content moves to the right by 40 pixels
    shifted = frame._seen(cut, replace(cut.cameras, K=K))
    assert not shifted[1, :, :40].any() and shifted[1, :, 40:].all()
