"From a frame or a sequence to files that a person opens."
from gslrm_mouse.reconstruction.prediction import fit_to_views, predict, training_blur
from gslrm_mouse.reconstruction.film import render_orbit, turntable_cameras
from gslrm_mouse.reconstruction.pipeline import ReconstructOptions, load_cloud, reconstruct, save_cloud

__all__ = [
    "ReconstructOptions", "fit_to_views", "load_cloud", "predict", "reconstruct", "render_orbit", "save_cloud",
    "training_blur", "turntable_cameras"]
