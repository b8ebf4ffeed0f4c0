"How views are prepared for the network, and what that breaks."
from gslrm_mouse.preprocess.silhouettes import ModelInput, foreground_stats, size_ratios
from gslrm_mouse.preprocess.recipes import METHODS, RECIPES, get_recipe
from gslrm_mouse.preprocess.canonical import Approximate, Canonical, canonicalize
from gslrm_mouse.preprocess.certificate import Certificate
from gslrm_mouse.preprocess.dataset import preprocess_dataset
from gslrm_mouse.preprocess.grading import Grades, grade_folder, grades

__all__ = [
    "Approximate", "Canonical", "Certificate", "Grades", "METHODS", "ModelInput", "RECIPES", "canonicalize",
    "foreground_stats", "get_recipe", "grade_folder", "grades", "preprocess_dataset", "size_ratios"]
