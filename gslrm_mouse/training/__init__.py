"From settings to a checkpoint."
from gslrm_mouse.training.settings import Settings, load_settings, settings_from
from gslrm_mouse.training.sources import MomentDataset, SceneDataset, build_dataset
from gslrm_mouse.training.batches import Batch, BatchStream
from gslrm_mouse.training.losses import Losses
from gslrm_mouse.training.freeze import freeze_table
from gslrm_mouse.training.runs import plot_runs, read_log
from gslrm_mouse.training.evaluation import evaluate, validate
from gslrm_mouse.training.loop import train
from gslrm_mouse.training.pretraining import PretrainSettings, pretrain

__all__ = [
    "Batch", "BatchStream", "Losses", "MomentDataset", "PretrainSettings", "SceneDataset", "Settings",
    "build_dataset", "evaluate", "freeze_table", "load_settings", "plot_runs", "pretrain", "read_log",
    "settings_from", "train", "validate"]
