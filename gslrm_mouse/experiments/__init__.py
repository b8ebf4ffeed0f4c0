"The study: one experiment, one file."
from gslrm_mouse.experiments.base import Arm, Experiment, Finding
from gslrm_mouse.experiments.plan import Plan
from gslrm_mouse.experiments.registry import EXPERIMENTS, experiments
from gslrm_mouse.experiments.runner import Section, run_arms, stored_parts
from gslrm_mouse.experiments.report import report_from, study

__all__ = [
    "Arm", "EXPERIMENTS", "Experiment", "Finding", "Plan", "Section", "experiments", "report_from", "run_arms",
    "stored_parts", "study"]
