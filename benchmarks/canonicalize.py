"""Time the exact resampling of six views of 1152 x 1024 to 512 x 512 beside OpenCV's remap with as many samples.

Both sides get float32 images with premultiplied alpha, take the same sub-samples per target pixel and average them.
OpenCV's maps are made from the same homographies. In the row "remap" this is not timed, in "maps and remap" it is: the
package makes its maps anew for every frame, since the animal moves. The package's kernel visits only pixels that can
see the silhouette. The second table is therefore for images that the silhouette fills.

Ratios mean something on any machine; milliseconds only on a quiet one.
"""
import argparse
import math
import statistics
import time

import cv2
import numpy as np
import torch

from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cameras.presets import mouse_rig
from gslrm_mouse.preprocess.canonical import rotation_homography, virtual_cameras
from gslrm_mouse.views.views import Views
from gslrm_mouse.views.warp import downscale_factor, warp_views

SILHOUETTES = {"a disc of 500 px in each image": 250., "silhouettes that fill the images": 1e4} # radius, pixels


def scene(size, radius):
    "Noise in the rig's six images, a disc as silhouette, and the homographies of the exact camera."
    rig = mouse_rig()
    rng = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(rig.height) - 500., torch.arange(rig.width) - 560., indexing="ij")
    alpha = ((x**2 + y**2).sqrt() < radius).float().expand(6, -1, -1).contiguous()
    noise = torch.rand(6, rig.height, rig.width, 3, generator=rng)
    images = noise*alpha[..., None] + 1 - alpha[..., None]
    center = torch.tensor([54., 57., 22.], dtype=torch.float64)
    virtual = virtual_cameras(rig, center, FACELIFT_DOMAIN.K(size), size)
    return Views(images, alpha, rig), rotation_homography(rig, virtual)


def maps(H, size, n):
    "Source positions of all sub-samples of one view, in OpenCV's pixels."
    target = (np.arange(size*n, dtype=np.float64) + .5)/n
    x, y = np.meshgrid(target, target)
    u, v, w = (row[0]*x + row[1]*y + row[2] for row in H)
    return (u/w - .5).astype(np.float32), (v/w - .5).astype(np.float32)


def remapped(source, xy, size):
    "One view by OpenCV: remap at every sub-sample, then the mean."
    fine = cv2.remap(source, *xy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)


def milliseconds(f, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(1e3*(time.perf_counter() - start))
    return statistics.median(times)


def table(name, views, H, args):
    size, repeats = args.size, args.repeats
    n = max(1, math.ceil(downscale_factor(H, size, size) - 1e-6))
    sources = torch.cat([views.premultiplied, views.alpha[..., None]], -1).numpy()
    homographies = H.numpy()
    ready_maps = [maps(h, size, n) for h in homographies]

    def remap_all(all_maps): return [remapped(source, xy, size) for source, xy in zip(sources, all_maps)]

    ours = milliseconds(lambda: warp_views(views, H, size, size), repeats)
    remap = milliseconds(lambda: remap_all(ready_maps), repeats)
    both = milliseconds(lambda: remap_all(maps(h, size, n) for h in homographies), repeats)
    _, alpha = warp_views(views, H, size, size)
    opencv = torch.from_numpy(np.stack(remap_all(ready_maps)))
    difference = (opencv[..., 3] - alpha).abs().mean().item()
    samples = 6*(size*n)**2
    print(f"{name}: six views of 1152 x 1024 to {size} x {size}, {n} x {n} samples per pixel, "
          f"{samples/1e6:.1f} million in all, {args.threads} thread(s); alphas differ by {difference:.1e} on average")
    print("| | ms | million samples per second | package / OpenCV |\n|---|---|---|---|")
    print(f"| gslrm_mouse warp | {ours:.0f} | {samples/ours/1e3:.0f} | |")
    print(f"| OpenCV, maps and remap | {both:.0f} | {samples/both/1e3:.0f} | {ours/both:.2f} |")
    print(f"| OpenCV, remap | {remap:.0f} | {samples/remap/1e3:.0f} | {ours/remap:.2f} |\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the square target, pixels")
    parser.add_argument("--repeats", type=int, default=5, help="passes whose median is shown")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of OpenCV")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    for name, radius in SILHOUETTES.items():
        views, H = scene(args.size, radius)
        table(name, views, H, args)


if __name__ == "__main__": main()
