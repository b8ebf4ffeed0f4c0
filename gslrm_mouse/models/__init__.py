"The networks, their checkpoints and files, LoRA, and one interface for all models."
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.models.checkpoint import (
    SHIPPED, ModelCard, checkpoint_hash, checkpoint_path, load_checkpoint, read_card, save_checkpoint,
    shipped_checkpoint)
from gslrm_mouse.models.facelift import convert, load_facelift
from gslrm_mouse.models.lora import add_lora, load_adapter, merge_adapter, save_adapter
from gslrm_mouse.models.lgm import LGM, LGM_CONFIGS, LGM_DOMAIN, LGMConfig, lgm_input, load_lgm
from gslrm_mouse.models.sv3d import SV3D, load_sv3d
from gslrm_mouse.models.reconstructor import GSLRMReconstructor, LGMReconstructor, Reconstructor

__all__ = [
    "GSLRM", "GSLRMConfig", "GSLRMReconstructor", "LGM", "LGMConfig", "LGMReconstructor", "LGM_CONFIGS", "LGM_DOMAIN",
    "ModelCard", "Reconstructor", "SHIPPED", "SV3D", "add_lora", "checkpoint_hash", "checkpoint_path", "convert",
    "lgm_input", "load_adapter", "load_checkpoint", "load_facelift", "load_lgm", "load_sv3d", "merge_adapter",
    "read_card", "save_adapter", "save_checkpoint", "shipped_checkpoint"]
