"Rig files of other tools."
from gslrm_mouse.calibration.formats import (
    FORMATS, Format, detect_format, find_rigs, read_calibration, write_calibration)
from gslrm_mouse.calibration.rig import Rig, assign_unit, infer_unit, rig_from_arrays

__all__ = [
    "FORMATS", "Format", "Rig", "assign_unit", "detect_format", "find_rigs", "infer_unit", "read_calibration",
    "rig_from_arrays", "write_calibration"]
