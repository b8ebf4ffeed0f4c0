"""Reconstruct recordings as sequences and frame by frame, with `gslrm_mouse.reconstruct`, and print one table.

Procedural mice are written as recordings (videos of 576 × 512 px of the six cameras of the rig) and scored in three
cameras that are held out. A recording with `truth/mesh` and `truth/heldout_views`, as the one that comes with the
project's shared data, is scored in the held-out views of the frames that have some.

To be quick, every tenth frame and the one before it are made frame by frame, and both ways are scored in these.

Flicker is the mean absolute difference of what two following frames change in the rendering and in the truth, over the
foreground; the table has its ratio, sequence / frame by frame. It is measured in the held-out cameras of a procedural
mouse. Of a stored recording the truth is there for every tenth frame only, so it is measured in the input views.

A Gaussian of the first frame that lies within 1 mm of the surface belongs to one place of the body: in an ellipsoid of
a procedural mouse, or above a triangle of the mesh. Its distance from where this place goes is the error of a point.

CPU seconds count everything that a call does: reading the videos, the first frame, scores of the input views, files.
Folders are kept in --out; what is there already is not made again, and a run that was interrupted goes on.
"""
import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from gslrm_mouse.cameras.presets import heldout_cameras, mouse_rig
from gslrm_mouse.gaussians.ply import load_ply
from gslrm_mouse.gaussians.rasterize import render
from gslrm_mouse.metrics import image_scores
from gslrm_mouse.reconstruction.pipeline import frame_folder, reconstruct
from gslrm_mouse.reconstruction.sequence import load_sequence
from gslrm_mouse.scenes.bodies import mouse_scene
from gslrm_mouse.scenes.recording import write_recording
from gslrm_mouse.scenes.tracer import raytrace
from gslrm_mouse.views.recordings import open_recording
from gslrm_mouse.views.samples import read_truth
from gslrm_mouse.views.views import Views

NEAR = 1. # mm from the surface


class Procedural:
    "A mouse whose truth is known everywhere."
    def __init__(self, seed, folder, frames):
        self.seed, self.name, self.path = seed, f"mouse {seed}, {mouse_posture(seed)}", folder/f"mouse_{seed}"
        self.cameras = [camera.resized(camera.width//2, camera.height//2) for camera in heldout_cameras()[:3]]
        self.truth = {}
        if not self.path.exists():
            write_recording(self.path, frames, seed, mouse_rig().resized(576, 512), truth=False)

    def scored(self, i) -> list: # of `Views`
        if i not in self.truth:
            self.truth[i] = [raytrace(mouse_scene(self.seed, i/20), c, 2) for c in self.cameras]
        return self.truth[i]

    def flickering(self, i) -> list:
        return self.scored(i)

    def attach(self, points) -> np.ndarray: # (N,) bool, near the surface
        "Remember the ellipsoid of each point and its place there, in the unit ball."
        scene = mouse_scene(self.seed)
        local = np.einsum("nij,pnj->pni", scene.A, points[:, None] - scene.centers)
        depth = np.linalg.norm(local, axis=-1)
        self.ellipsoid, each = depth.argmin(1), np.arange(len(points))
        self.local = local[each, self.ellipsoid]
        radius = 3**.5/np.linalg.norm(scene.A[self.ellipsoid], axis=(1, 2))
        return np.abs(depth[each, self.ellipsoid] - 1)*radius < NEAR

    def points(self, i) -> np.ndarray: # (N, 3)
        scene = mouse_scene(self.seed, i/20)
        offsets = np.linalg.solve(scene.A[self.ellipsoid], self.local[..., None])[..., 0]
        return scene.centers[self.ellipsoid] + offsets


class Stored:
    "A recording with the mesh and held-out views of some frames."
    def __init__(self, path):
        self.path, self.name = Path(path), Path(path).name
        self.recording, self.truth = open_recording(path), self.path/"truth"
        self.faces = np.load(self.truth/"mesh/topology.npz")["faces"]

    def scored(self, i) -> list:
        folder = self.truth/"heldout_views"
        if not any(folder.glob(f"frame_{i:03d}_view_*.png")): return []
        return [half(view) for view in read_truth(folder, i)]

    def flickering(self, i) -> list:
        return [half(half(self.recording.frame(i)))]

    def corners(self, i) -> np.ndarray|None: # (F, 3, 3)
        file = self.truth/f"mesh/frame_{i:03d}.npz"
        return np.load(file)["vertices_mm"][self.faces].astype(float) if file.exists() else None

    def attach(self, points) -> np.ndarray:
        "Remember the triangle of each point and its place above it."
        corners = self.corners(0)
        middle = torch.from_numpy(corners.mean(1))
        self.triangle = torch.cdist(torch.from_numpy(points), middle).argmin(1).numpy()
        origin, axes = triangle_axes(corners[self.triangle])
        self.local = np.linalg.solve(axes, (points - origin)[..., None])
        along = np.abs(self.local[:, :2, 0] - 1/3).max(1) # of the edges; far from the triangle where this is large
        return (np.abs(self.local[:, 2, 0]) < NEAR) & (along < 1.5)

    def points(self, i) -> np.ndarray|None:
        corners = self.corners(i)
        if corners is None: return None
        origin, axes = triangle_axes(corners[self.triangle])
        return origin + (axes @ self.local)[..., 0]


def mouse_posture(seed):
    moved = np.linalg.norm((mouse_scene(seed, 1).center - mouse_scene(seed).center).numpy())
    return "walks" if moved > 30 else "stays"


def half(view:Views) -> Views:
    return view.resized(view.cameras.width//2, view.cameras.height//2)


def triangle_axes(corners) -> tuple: # (N, 3) first corner, (N, 3, 3) columns: two edges and the unit normal
    origin = corners[:, 0]
    first, second = corners[:, 1] - origin, corners[:, 2] - origin
    normal = np.cross(first, second)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    return origin, np.stack([first, second, normal], -1)


def made(source, out, quality, frames, is_sequence) -> float: # CPU seconds a frame
    "Reconstruct the frames, or what is missing; seconds of calls that were interrupted are added."
    clock = out.with_suffix(".json")
    before = json.loads(clock.read_text()) if clock.exists() else dict(seconds=0., done=False)
    if before["done"]: return before["seconds"]/len(frames)
    start, done = time.process_time(), False
    try:
        reconstruct(source.path, out, frames=frames, quality=quality, sequence=is_sequence, turntable=False,
                    panels=False, film=False, viewer=False)
        done = True
    finally:
        seconds = before["seconds"] + time.process_time() - start
        clock.write_text(json.dumps(dict(seconds=seconds, done=done)))
    return seconds/len(frames)


def compared_frames(n) -> list:
    return [i for i in range(n) if i % 10 in (0, 9)]


def scores(source, clouds) -> dict: # of {frame: Gaussians}
    "Mean scores of the held-out views, and flicker where the frame before is there too."
    rows, flicker, errors = [], [], {}
    for i, g in clouds.items():
        for view in source.scored(i):
            rows += image_scores(*render(g, view.cameras, eps2d=0.), view.images, view.alpha)
        views = source.flickering(i)
        errors[i] = [render(g, view.cameras, eps2d=0.)[0].clamp(0, 1) - view.images for view in views]
        if i - 1 not in errors: continue
        pairs = zip(errors[i], errors[i - 1], views)
        changes = [(new - old).abs()[view.alpha > .5].mean() for new, old, view in pairs]
        flicker.append(255*torch.stack(changes).mean().item())
    means = {name: float(np.mean([row[name] for row in rows])) for name in ("iou", "psnr_fg")}
    return means | dict(flicker=float(np.mean(flicker)))


def point_errors(source, positions) -> dict: # frame: median error, mm
    on_surface = source.attach(positions[0].astype(float))
    truth = {i: source.points(i) for i in range(1, len(positions))}
    return {i: float(np.median(np.linalg.norm(positions[i] - points, axis=1)[on_surface]))
            for i, points in truth.items() if points is not None}


def compare(source, quality, frames, out) -> str: # a row of the table
    folders = {name: out/f"{source.path.name}_{quality}_{name}" for name in ("sequence", "single")}
    numbers = dict(sequence=list(range(frames)), single=compared_frames(frames))
    seconds = {name: made(source, folders[name], quality, numbers[name], name == "sequence") for name in folders}
    sequence = load_sequence(folders["sequence"])
    a = scores(source, {i: sequence.gaussians(i) for i in numbers["single"]})
    b = scores(source, {i: load_ply(frame_folder(folders["single"], i)/"gaussians.ply") for i in numbers["single"]})
    errors = point_errors(source, sequence.tracked)
    shown = [i for i in (10, 20, 30, frames - 1) if i in errors]
    points = ", ".join(f"{errors[i]:.2f} ({i})" for i in shown)
    kinds, counts = np.unique(sequence.kinds[1:], return_counts=True)
    print(f"{source.name}, {quality}: flicker {a['flicker']:.1f} / {b['flicker']:.1f}, median error of the points over "
          f"all frames {np.median(list(errors.values())):.2f} mm; "
          + ", ".join(f"{n} {kind}" for kind, n in zip(kinds, counts)))
    return (f"| {source.name}, {quality} | {a['iou']:.3f} / {b['iou']:.3f} | {a['psnr_fg']:.2f} / {b['psnr_fg']:.2f} | "
            f"{a['flicker']/b['flicker']:.0%} | {points} | {seconds['sequence']:.2f} / {seconds['single']:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="*", help="folders with truth/mesh and truth/heldout_views")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 3, 9], help="of procedural mice")
    parser.add_argument("--frames", type=int, default=40, help="a twentieth of a second apart")
    parser.add_argument("--qualities", nargs="+", default=["draft", "good"])
    parser.add_argument("--out", type=Path, required=True, help="folder for recordings and results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    sources = [Stored(path) for path in args.recordings]
    sources += [Procedural(seed, args.out, args.frames) for seed in args.seeds]
    rows = [compare(source, quality, args.frames, args.out) for source in sources for quality in args.qualities]
    print("\n| sequence / frame by frame | IoU | foreground, dB | flicker | points, mm (frame) | CPU s a frame |\n"
          "|---|---|---|---|---|---|")
    for row in rows:
        print(row)


if __name__ == "__main__": main()
