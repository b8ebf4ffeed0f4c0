"GS-LRM on a mouse rig: why it went white, and what to do. The names of a first script are imported when they are used."
__version__ = "0.1.0"

_ROOMS = {"canonicalize": "preprocess", "diagnose": "doctor", "load_checkpoint": "models", "open_recording": "views",
          "reconstruct": "reconstruction"}
__all__ = list(_ROOMS)

def __getattr__(name):
    if name not in _ROOMS: raise AttributeError(f"module 'gslrm_mouse' has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f"gslrm_mouse.{_ROOMS[name]}"), name)

def __dir__(): return sorted([*globals(), *_ROOMS])
