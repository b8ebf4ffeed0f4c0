"The run of a small network that is killed between two checkpoints ends as one that was left alone."
from dataclasses import replace
from functools import partial

import pytest
import torch

from gslrm_mouse.models.lgm import LGMConfig
from gslrm_mouse.models.view_flow import ViewFlowConfig
from gslrm_mouse.training import small_run
from gslrm_mouse.training.generator import GENERATOR_RUN, train_generator
from gslrm_mouse.training.lgm import LGM_RUN, train_lgm
from gslrm_mouse.training.runs import checkpoints, read_log

FEW = dict(steps=6, batch=1, warmup=2)
TINY_FLOW = ViewFlowConfig(image_size=16, d=32, d_head=16, n_layer=1)
TINY_LGM = LGMConfig(down=(32, 32), down_attention=(False, True), up=(32,), up_attention=(True,), image_size=16)


@pytest.mark.parametrize(("train", "settings", "network"), [
    (train_generator, replace(GENERATOR_RUN, **FEW), TINY_FLOW),
    (train_lgm, replace(LGM_RUN, **FEW), TINY_LGM),
], ids=["generator", "lgm"])
def test_killed_between_checkpoints(tmp_path, monkeypatch, train, settings, network):
    whole = train(tmp_path/"whole", settings, network)
    train_step = small_run._train_step

    def killed(model, optimizers, s, step, loss_of, at):
        if step == at:
            raise KeyboardInterrupt
        return train_step(model, optimizers, s, step, loss_of)

    monkeypatch.setattr(small_run, "_SAVE_EVERY", 2)
    for at in (1, 5): # before the first checkpoint, and after the second
        monkeypatch.setattr(small_run, "_train_step", partial(killed, at=at))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path/"killed", settings, network)
        assert len(read_log(tmp_path/"killed")) == at
    assert [path.name for path in checkpoints(tmp_path/"killed")] == ["step_00000002", "step_00000004"]

    monkeypatch.setattr(small_run, "_train_step", train_step)
    resumed = train(tmp_path/"killed", settings, network)
    assert read_log(tmp_path/"killed") == read_log(tmp_path/"whole")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
