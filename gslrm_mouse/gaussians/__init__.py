"3D Gaussians: the cloud, files, filters, rasterizers, direct optimisation."
from gslrm_mouse.gaussians.cloud import Gaussians
from gslrm_mouse.gaussians.filters import FILTERS, Filters
from gslrm_mouse.gaussians.ply import load_ply, save_ply
from gslrm_mouse.gaussians.rasterize import rasterization, render
from gslrm_mouse.gaussians.fit import Fit, fit_gaussians
from gslrm_mouse.gaussians.surface import surface_gaussians
from gslrm_mouse.gaussians.coarse_to_fine import FitStage, fit_coarse_to_fine
from gslrm_mouse.gaussians.registration import Registration, RegistrationSettings, register_silhouettes

__all__ = [
    "FILTERS", "Filters", "Fit", "FitStage", "Gaussians", "Registration", "RegistrationSettings", "fit_coarse_to_fine",
    "fit_gaussians", "load_ply", "rasterization", "register_silhouettes", "render", "save_ply", "surface_gaussians"]
