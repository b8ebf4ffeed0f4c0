"Will this rig fail, why, and what to do."
from gslrm_mouse.doctor.diagnosis import Diagnosis, diagnose
from gslrm_mouse.doctor.evidence import Diagnostic, Evidence, read_evidence

__all__ = [
    "Diagnosis", "Diagnostic", "Evidence", "diagnose", "read_evidence"]
