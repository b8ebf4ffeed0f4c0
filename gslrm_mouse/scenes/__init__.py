"The synthetic world: bodies, ray tracer, numbered scenes, recordings with truth."
from gslrm_mouse.scenes.tracer import Scene, raytrace, raytrace_depth
from gslrm_mouse.scenes.bodies import SCENES, canonical_scene, head_scene, mouse_scene, object_scene, random_scene
from gslrm_mouse.scenes.dataset import HELD_OUT, WORLD, canonical_cameras, scene_views, varied_cameras
from gslrm_mouse.scenes.recording import write_recording

__all__ = [
    "HELD_OUT", "SCENES", "Scene", "WORLD", "canonical_cameras", "canonical_scene", "head_scene", "mouse_scene",
    "object_scene", "random_scene", "raytrace", "raytrace_depth", "scene_views", "varied_cameras",
    "write_recording"]
