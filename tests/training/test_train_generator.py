"A run of the small generator that is killed between two checkpoints ends as one that was left alone."
import pytest
import torch

from gslrm_mouse.models.view_flow import ViewFlowConfig
from gslrm_mouse.training import generator
from gslrm_mouse.training.generator import GeneratorSettings, train_generator
from gslrm_mouse.training.runs import checkpoints, read_log

TINY = ViewFlowConfig(image_size=16, d=32, d_head=16, n_layer=1)
FEW = GeneratorSettings(steps=6, batch=1, warmup=2)


def test_killed_between_checkpoints(tmp_path, monkeypatch):
    whole = train_generator(tmp_path/"whole", FEW, TINY)
    train_step = generator._train_step

    def killed(model, optimizers, s, step):
        if step == 5: raise KeyboardInterrupt
        return train_step(model, optimizers, s, step)

    monkeypatch.setattr(generator, "_SAVE_EVERY", 2)
    monkeypatch.setattr(generator, "_train_step", killed)
    with pytest.raises(KeyboardInterrupt): train_generator(tmp_path/"killed", FEW, TINY)
    assert [path.name for path in checkpoints(tmp_path/"killed")] == ["step_00000002", "step_00000004"]
    assert len(read_log(tmp_path/"killed")) == 5

    monkeypatch.setattr(generator, "_train_step", train_step)
    resumed = train_generator(tmp_path/"killed", FEW, TINY)
    assert read_log(tmp_path/"killed") == read_log(tmp_path/"whole")
    for name, value in whole.state_dict().items(): assert torch.equal(resumed.state_dict()[name], value)
