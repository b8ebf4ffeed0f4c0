"What a camera is: pinhole cameras, lenses, rays, similarity transforms, presets."
from gslrm_mouse.cameras.pinhole import (
    Cameras, CameraError, check_cameras, check_in_front, draw_cameras, intrinsics, look_at, orbit)
from gslrm_mouse.cameras.similarity import IDENTITY, Similarity, fit_similarity, upright
from gslrm_mouse.cameras.domain import FACELIFT_DISTANCE, FACELIFT_DOMAIN, FACELIFT_FOV, CameraDomain
from gslrm_mouse.cameras.lens import LENS_MODELS, Lens
from gslrm_mouse.cameras.rays import (
    camera_rays, closest_point_to_rays, closest_to_origin, pixel_rays, plucker_moments, ray_angles, ray_features)
from gslrm_mouse.cameras.presets import facelift_rig, heldout_cameras, inference_rig, mouse_rig, novel_cameras
from gslrm_mouse.cameras.perturb import at_distance, shifted, spread_factors, turned, zoomed
from gslrm_mouse.cameras.relative import RelativeEncoding, RigFrame, in_rig_frame, relative_encoding, rig_frame
from gslrm_mouse.cameras.rotations import (
    matrix_to_quat, matrix_to_rotvec, quat_to_matrix, quaternion_product, rotvec_to_matrix)

__all__ = [
    "CameraDomain", "CameraError", "Cameras", "FACELIFT_DISTANCE", "FACELIFT_DOMAIN", "FACELIFT_FOV", "IDENTITY",
    "LENS_MODELS", "Lens", "RelativeEncoding", "RigFrame", "Similarity", "at_distance", "camera_rays", "check_cameras",
    "check_in_front", "closest_point_to_rays", "closest_to_origin", "draw_cameras", "facelift_rig", "fit_similarity",
    "heldout_cameras", "in_rig_frame", "inference_rig", "intrinsics", "look_at", "matrix_to_quat", "matrix_to_rotvec",
    "mouse_rig", "novel_cameras", "orbit", "pixel_rays", "plucker_moments", "quat_to_matrix", "quaternion_product",
    "ray_angles", "ray_features", "relative_encoding", "rig_frame", "rotvec_to_matrix", "shifted", "spread_factors",
    "turned", "upright", "zoomed"]
