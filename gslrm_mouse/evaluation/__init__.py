"Scores in novel views, sensitivity to camera perturbations, and camera dependence of any model."
from gslrm_mouse.evaluation.scoring import score_cloud, zero_shot
from gslrm_mouse.evaluation.sensitivity import (
    PERTURBATIONS, Perturbation, Sensitivity, load_sensitivity, measure_sensitivity)
from gslrm_mouse.evaluation.dependence import (
    DOSES, Dependence, Dose, contradiction, measure_dependence, rig_trial, summarise_dependence)
from gslrm_mouse.evaluation.baselines import MaskEllipsoid, MeanShape, VisualHull, with_views

__all__ = [
    "DOSES", "Dependence", "Dose", "MaskEllipsoid", "MeanShape", "PERTURBATIONS", "Perturbation", "Sensitivity",
    "VisualHull", "contradiction", "load_sensitivity", "measure_dependence", "measure_sensitivity", "rig_trial",
    "score_cloud", "summarise_dependence", "with_views", "zero_shot"]
