"Scores in novel views, and sensitivity to camera perturbations."
from gslrm_mouse.evaluation.scoring import score_cloud, zero_shot
from gslrm_mouse.evaluation.sensitivity import (
    PERTURBATIONS, Perturbation, Sensitivity, load_sensitivity, measure_sensitivity)

__all__ = [
    "PERTURBATIONS", "Perturbation", "Sensitivity", "load_sensitivity", "measure_sensitivity", "score_cloud",
    "zero_shot"]
