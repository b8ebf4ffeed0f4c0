"How views are prepared for the network, and what that breaks."
from gslrm_mouse.preprocess.silhouettes import ModelInput, foreground_stats, size_ratios
from gslrm_mouse.preprocess.canonical import Approximate, Canonical, canonicalize
from gslrm_mouse.preprocess.methods import METHODS, get_method
from gslrm_mouse.preprocess.certificate import Certificate
from gslrm_mouse.preprocess.dataset import preprocess_dataset
from gslrm_mouse.preprocess.grading import Grades, grade_folder, grades

__all__ = [
    "Approximate", "Canonical", "Certificate", "Grades", "METHODS", "ModelInput", "canonicalize",
    "foreground_stats", "get_method", "grade_folder", "grades", "preprocess_dataset", "size_ratios"]
