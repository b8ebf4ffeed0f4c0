"From a frame or a sequence to files that a person opens."
from gslrm_mouse.reconstruction.prediction import QUALITIES, fit_to_views, optimise_scene, predict, training_blur
from gslrm_mouse.reconstruction.film import render_orbit, turntable_cameras
from gslrm_mouse.reconstruction.frame import ReconstructOptions, load_cloud, save_cloud
from gslrm_mouse.reconstruction.pipeline import reconstruct
from gslrm_mouse.reconstruction.sequence import Sequence, load_sequence
from gslrm_mouse.reconstruction.track import Track, track_sequence
from gslrm_mouse.reconstruction.viewer import show, write_viewer
from gslrm_mouse.reconstruction.mesh import mesh_of, write_mesh

__all__ = [
    "QUALITIES", "ReconstructOptions", "Sequence", "Track", "fit_to_views", "load_cloud", "load_sequence", "mesh_of",
    "optimise_scene", "predict", "reconstruct", "render_orbit", "save_cloud", "show", "track_sequence",
    "training_blur", "turntable_cameras", "write_mesh", "write_viewer"]
