"Silhouettes: made, imported, and how far to trust them."
from gslrm_mouse.masks.make import contact_sheet, import_animals, import_masks, make_masks, write_mask_video
from gslrm_mouse.masks.confidence import MaskReport, mask_confidence, summarize_masks
from gslrm_mouse.masks.background import Background, estimate_background, segment_foreground
from gslrm_mouse.masks.imported import read_coco, read_mask_folder

__all__ = [
    "Background", "MaskReport", "contact_sheet", "estimate_background", "import_animals", "import_masks",
    "make_masks", "mask_confidence", "read_coco", "read_mask_folder", "segment_foreground", "summarize_masks",
    "write_mask_video"]
