"""Time the exact resampling of six 1152 x 1024 views to 512 x 512 beside OpenCV's remap at the same number of samples, in the same run.

Both sides get float32 pictures with premultiplied alpha, take the same sub-samples per target pixel and average them. OpenCV's maps are made from
the same homographies, outside of its time in the row "remap", inside in "maps and remap": the package makes its maps anew for every frame, since the
animal moves. The kernel visits only what can see the silhouette, hence the second table, in which everything is silhouette. Ratios mean something on any machine; milliseconds only on a quiet one.
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
from gslrm_mouse.views.warp import downscale_factor, warp_views
from gslrm_mouse.views.views import Views


def scene(size, radius):
    "Noise in the rig's six pictures, a disc as silhouette, and the homographies of the exact camera."
    rig = mouse_rig()
    g = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(rig.height) - 500., torch.arange(rig.width) - 560., indexing="ij")
    alpha = ((x**2 + y**2).sqrt() < radius).float().expand(6, -1, -1).contiguous()
    images = torch.rand(6, rig.height, rig.width, 3, generator=g)*alpha[..., None] + 1 - alpha[..., None]
    virtual = virtual_cameras(rig, torch.tensor([54., 57., 22.], dtype=torch.float64), FACELIFT_DOMAIN.K(size), size)
    return Views(images, alpha, rig), rotation_homography(rig, virtual)


def maps(H, size, n):
    "Source positions of all sub-samples of one view, in OpenCV's pixels."
    s = (np.arange(size*n, dtype=np.float64) + .5)/n
    x, y = np.meshgrid(s, s)
    q = [H[i, 0]*x + H[i, 1]*y + H[i, 2] for i in range(3)]
    return (q[0]/q[2] - .5).astype(np.float32), (q[1]/q[2] - .5).astype(np.float32)


def remapped(source, xy, size, n):
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the square target, pixels")
    parser.add_argument("--repeats", type=int, default=5, help="passes whose median is shown")
    parser.add_argument("--threads", type=int, default=1, help="of torch and of OpenCV")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    for name, radius in (("a disc of 500 px in each picture", 250.), ("silhouettes that fill the pictures", 1e4)): table(name, *scene(args.size, radius), args)


def table(name, views, H, args):
    n = max(1, math.ceil(downscale_factor(H, args.size, args.size) - 1e-6))
    source = torch.cat([views.premultiplied, views.alpha[..., None]], -1).numpy()
    h = H.numpy()
    xy = [maps(k, args.size, n) for k in h]
    ours = milliseconds(lambda: warp_views(views, H, args.size, args.size), args.repeats)
    remap = milliseconds(lambda: [remapped(s, m, args.size, n) for s, m in zip(source, xy)], args.repeats)
    both = milliseconds(lambda: [remapped(s, maps(k, args.size, n), args.size, n) for s, k in zip(source, h)], args.repeats)
    image, alpha = warp_views(views, H, args.size, args.size)
    theirs = torch.from_numpy(np.stack([remapped(s, m, args.size, n) for s, m in zip(source, xy)]))
    off = (theirs[..., 3] - alpha).abs().mean().item()
    samples = 6*(args.size*n)**2
    print(f"{name}: six views of 1152 x 1024 to {args.size} x {args.size}, {n} x {n} samples per pixel, {samples/1e6:.1f} million in all, {args.threads} thread(s); alphas differ by {off:.1e} on average")
    print("| | ms | million samples per second | package / OpenCV |\n|---|---|---|---|")
    print(f"| gslrm_mouse warp | {ours:.0f} | {samples/ours/1e3:.0f} | |")
    print(f"| OpenCV, maps and remap | {both:.0f} | {samples/both/1e3:.0f} | {ours/both:.2f} |")
    print(f"| OpenCV, remap | {remap:.0f} | {samples/remap/1e3:.0f} | {ours/remap:.2f} |\n")


if __name__ == "__main__": main()
