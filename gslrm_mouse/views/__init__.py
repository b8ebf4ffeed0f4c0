"Images with cameras: views, recordings, sample folders, triangulation, visual hull, warping."
from gslrm_mouse.views.views import MaskError, Views, check_views, pad_views, show_views, unpad_views
from gslrm_mouse.views.recordings import (
    Recording, is_recording, iter_moments, open_moments, open_recording, read_views)
from gslrm_mouse.views.samples import is_sample, read_sample, read_truth, sample_folders, write_sample
from gslrm_mouse.views.triangulation import Triangulation, centroids, centred, triangulate
from gslrm_mouse.views.hull import Hull, visual_hull
from gslrm_mouse.views.warp import downscale_factor, warp_views
from gslrm_mouse.video import decode_frame

__all__ = [
    "Hull", "MaskError", "Recording", "Triangulation", "Views", "centred", "centroids", "check_views",
    "decode_frame", "downscale_factor", "is_recording", "is_sample", "iter_moments", "open_moments", "open_recording",
    "pad_views", "read_sample", "read_truth", "read_views", "sample_folders", "show_views", "triangulate",
    "unpad_views", "visual_hull", "warp_views", "write_sample"]
