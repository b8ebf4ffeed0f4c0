"The networks, their checkpoints and files, LoRA, and one interface for all models."
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig
from gslrm_mouse.models.checkpoint import (
    SHIPPED, ModelCard, checkpoint_hash, checkpoint_path, load_checkpoint, read_card, save_checkpoint,
    shipped_checkpoint)
from gslrm_mouse.models.facelift import convert, load_facelift
from gslrm_mouse.models.lora import add_lora, load_adapter, merge_adapter, save_adapter
from gslrm_mouse.models.lgm import LGM, LGM_CONFIGS, LGM_DOMAIN, LGMConfig, lgm_input, load_lgm
from gslrm_mouse.models.sv3d import SV3D, SV3DPipeline, load_sv3d, load_sv3d_pipeline
from gslrm_mouse.models.zero123plus import Zero123Plus, load_zero123plus
from gslrm_mouse.models.reconstructor import GSLRMReconstructor, LGMReconstructor, Reconstructor
from gslrm_mouse.models.generator import (
    Generator, GeneratorReconstructor, SV3DGenerator, Zero123PlusGenerator, generator_input)
from gslrm_mouse.models.named import open_model, usable_models

__all__ = [
    "GSLRM", "GSLRMConfig", "GSLRMReconstructor", "Generator", "GeneratorReconstructor", "LGM", "LGMConfig",
    "LGMReconstructor", "LGM_CONFIGS", "LGM_DOMAIN", "ModelCard", "Reconstructor", "SHIPPED", "SV3D", "SV3DGenerator",
    "SV3DPipeline", "Zero123Plus", "Zero123PlusGenerator", "add_lora", "checkpoint_hash", "checkpoint_path",
    "convert", "generator_input", "lgm_input", "load_adapter", "load_checkpoint", "load_facelift", "load_lgm",
    "load_sv3d", "load_sv3d_pipeline", "load_zero123plus", "merge_adapter", "open_model", "read_card", "save_adapter",
    "save_checkpoint", "shipped_checkpoint", "usable_models"]
