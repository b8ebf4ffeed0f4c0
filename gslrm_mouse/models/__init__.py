"The network, its checkpoints, FaceLift's files, LoRA."
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.models.checkpoint import (
    SHIPPED, ModelCard, checkpoint_hash, checkpoint_path, load_checkpoint, read_card, save_checkpoint, shipped_checkpoint)
from gslrm_mouse.models.facelift import convert, load_facelift
from gslrm_mouse.models.lora import add_lora, load_adapter, merge_adapter, save_adapter

__all__ = [
    "GSLRM", "GSLRMConfig", "ModelCard", "SHIPPED", "add_lora", "checkpoint_hash", "checkpoint_path", "convert",
    "load_adapter", "load_checkpoint", "load_facelift", "merge_adapter", "read_card", "save_adapter",
    "save_checkpoint", "shipped_checkpoint"]
