"""Time GS-LRM beside a plain implementation of its description, at full size, and the loading of a released-size file.

`speed`  64 and 128 px, d 192, 6 layers, 6 views, one thread, both networks in turn in one process, with the same
         weights; medians of CPU time.
`full`   one forward pass at 6 x 512 x 512, 303,565,824 random weights, in a process of its own for each precision;
         minutes on a CPU.
`load`   writes a checkpoint in the original's layout with random weights (1.3 GB, 3.7 GB with --optimizer) to a
         temporary folder, then loads and converts it in fresh processes.

Ratios between columns of one row mean something on any machine; milliseconds only on a quiet one. Rows marked "cuda"
appear only where torch sees a CUDA device.
"""
import argparse
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from gslrm_mouse.cameras.presets import facelift_rig
from gslrm_mouse.models.checkpoint import load_checkpoint
from gslrm_mouse.models.facelift import PERCEPTUAL, convert, facelift_tensors, load_facelift
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig, n_flop, n_parameters, n_tokens, rig_rays


def norm(n): return nn.LayerNorm(n, bias=False)


def linear(n_in, n_out): return nn.Linear(n_in, n_out, bias=False)


class PlainLayer(nn.Module):
    "A transformer layer with the names of the released weights."

    def __init__(self, d, d_head):
        super().__init__()
        self.d_head = d_head
        self.norm1, self.norm2 = norm(d), norm(d)
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.to_qkv, self.attn.fc = linear(d, 3*d), linear(d, d)
        self.mlp.mlp = nn.Sequential(linear(d, 4*d), nn.GELU(), linear(4*d, d))

    def forward(self, x): # (B, T, d)
        batch, tokens, d = x.shape

        def heads(t): return t.reshape(batch, tokens, d//self.d_head, self.d_head).transpose(1, 2)

        q, k, v = self.attn.to_qkv(self.norm1(x)).chunk(3, -1)
        mixed = scaled_dot_product_attention(heads(q), heads(k), heads(v))
        x = x + self.attn.fc(mixed.transpose(1, 2).reshape(batch, tokens, d))
        return x + self.mlp.mlp(self.norm2(x))


class Plain(nn.Module):
    "The released flags, step by step in the order of the description, with all it returns; channels first."

    def __init__(self, c):
        super().__init__()
        self.c, d, patch_area = c, c.d, c.patch_size**2
        self.gaussian_position_embeddings = nn.Parameter(torch.zeros(c.n_gaussians, d))
        self.patch_embedder = nn.Sequential(nn.Identity(), linear(patch_area*9, d))
        self.input_layer_norm = norm(d)
        self.transformer_layers = nn.ModuleList(PlainLayer(d, c.d_head) for _ in range(c.n_layer))
        self.gaussian_upsampler = nn.Module()
        self.gaussian_upsampler.layernorm, self.gaussian_upsampler.linear = norm(d), linear(d, c.n_out)
        self.pixel_gaussian_decoder = nn.Sequential(norm(d), linear(d, patch_area*c.n_out))

    def rays(self, image, fxfycxcy, c2w): # four (B, V, C, H, W): origins, directions in the world and in the camera, xy
        B, V, _, H, W = image.shape
        row, column = torch.meshgrid(
            torch.arange(H, device=image.device), torch.arange(W, device=image.device), indexing="ij")
        x, y = column.flatten() + .5, row.flatten() + .5
        fx, fy, cx, cy = fxfycxcy.reshape(B*V, 4, 1).unbind(1)
        in_camera = torch.stack([(x - cx)/fx, (y - cy)/fy, torch.ones(B*V, H*W, device=image.device)], -1)
        in_camera = normalize(in_camera, dim=-1)
        pose = c2w.reshape(B*V, 4, 4)
        directions = normalize(torch.bmm(in_camera, pose[:, :3, :3].transpose(1, 2)), dim=-1)
        origins = pose[:, None, :3, 3].expand_as(directions)
        xy = torch.stack([x/W*2 - 1, y/H*2 - 1], -1)[None].expand(B*V, -1, -1)

        def image_like(t): return t.transpose(1, 2).reshape(B, V, -1, H, W)

        return image_like(origins), image_like(directions), image_like(in_camera), image_like(xy)

    def tokens(self, image, o, d): # (B, n_gaussians + V*h*w, d)
        c, p = self.c, self.c.patch_size
        B, V, _, H, W = image.shape
        h, w = H//p, W//p
        nearest = o - (o*d).sum(2, keepdim=True)*d
        posed = torch.cat([image*2 - 1, d, nearest], 2)
        patches = posed.reshape(B*V, 9, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(B*V, h*w, p*p*9)
        embedded = self.patch_embedder(patches).reshape(B, V*h*w, c.d)
        learned = self.gaussian_position_embeddings[None].expand(B, -1, -1)
        return self.input_layer_norm(torch.cat([learned, embedded], 1))

    def positions(self, raw, o, d): # (B, N, 3) and, of those that belong to pixels, (B, V, 3, H, W)
        n, p = self.c.n_gaussians, self.c.patch_size
        B, V, _, H, W = o.shape
        h, w = H//p, W//p

        def patch_order(t): return t.reshape(B, V, 3, h, p, w, p).permute(0, 1, 3, 5, 4, 6, 2).reshape(B, V*H*W, 3)

        o, d = patch_order(o), patch_order(d)
        depth = (2*torch.sigmoid(raw[:, n:].mean(-1, keepdim=True)) - 1)*1.8 - (o*d).sum(-1, keepdim=True)
        means = torch.cat([raw[:, :n], o + depth*d], 1)
        aligned = means[:, n:].reshape(B, V, h, w, p, p, 3).permute(0, 1, 6, 2, 4, 3, 5).reshape(B, V, 3, H, W)
        return means, aligned

    def forward(self, image, fxfycxcy, c2w):
        n, n_out = self.c.n_gaussians, self.c.n_out
        o, d, ray_d_cam, xy_norm = self.rays(image, fxfycxcy, c2w)
        x = self.tokens(image, o, d)
        for layer in self.transformer_layers: x = layer(x)
        free, img_tokens = x[:, :n], x[:, n:]
        free = self.gaussian_upsampler.linear(self.gaussian_upsampler.layernorm(free))
        pixel = self.pixel_gaussian_decoder(img_tokens).reshape(len(x), -1, n_out)
        xyz, sh, scale, rotation, opacity = torch.cat([free, pixel], 1).split([3, 3, 3, 4, 1], -1)
        means, aligned = self.positions(xyz, o, d)
        scales = torch.exp((scale - 2.3).clamp(max=-1.2))
        gaussians = means, sh[:, :, None], scales, normalize(rotation, dim=-1), torch.sigmoid(opacity - 2)
        return dict(gaussians=gaussians, pixelalign_xyz=aligned, img_tokens=img_tokens, ray_o=o, ray_d=d,
                    ray_d_cam=ray_d_cam, xy_norm=xy_norm)


def inputs(size, views, device="cpu"):
    "Images and cameras, channels last for one network and first for the other."
    cams = facelift_rig(size, n=8, elevation=0.)[:views]
    cams = replace(cams, K=cams.K[None].float(), w2c=cams.w2c[None].float()).to(device)
    images = torch.rand(1, views, size, size, 3, generator=torch.Generator().manual_seed(0)).to(device)
    fxfycxcy = torch.stack([cams.K[..., 0, 0], cams.K[..., 1, 1], cams.K[..., 0, 2], cams.K[..., 1, 2]], -1)
    plain = images.permute(0, 1, 4, 2, 3).contiguous(), fxfycxcy, torch.linalg.inv(cams.w2c)
    return images, cams, plain


# speed


def in_turn(calls, repeats, cuda=False):
    "Median milliseconds of each call, one after the other `repeats` times: CPU time, or wall time on a CUDA device."
    clock = time.perf_counter if cuda else time.process_time
    times = {name: [] for name in calls}
    for i in range(repeats + 2): # two to warm up
        for name, call in calls.items():
            if cuda: torch.cuda.synchronize()
            start = clock()
            call()
            if cuda: torch.cuda.synchronize()
            if i > 1: times[name].append(1e3*(clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def speed_row(device, config, args):
    torch.manual_seed(0)
    ours, plain = GSLRM(config).eval().to(device), Plain(config).eval().to(device)
    plain.load_state_dict(ours.state_dict())
    images, cams, plain_inputs = inputs(config.image_size, args.views, device)
    rays = rig_rays(cams, config)
    difference = (ours(images, cams).means - plain(*plain_inputs)["gaussians"][0]).abs().max().item()
    calls = dict(
        plain=lambda: plain(*plain_inputs), cameras=lambda: ours(images, cams), rays=lambda: ours(images, rays))
    ms = in_turn(calls, args.repeats, device == "cuda")
    print(f"| {device} | {config.image_size} | {n_tokens(config, args.views)} | {ms['plain']:.1f} "
          f"| {ms['cameras']:.1f} | {ms['rays']:.1f} | {ms['cameras']/ms['plain']:.3f} "
          f"| {ms['rays']/ms['plain']:.3f} | {difference:.0e} |")


@torch.no_grad()
def speed(args):
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), d {args.d}, {args.layers} layers, {args.views} views, "
          f"medians of {args.repeats}\n")
    print("| device | pixels | tokens | plain, ms | cameras in, ms | rays computed beforehand, ms "
          "| cameras : plain | rays : plain | largest difference |\n|---|---|---|---|---|---|---|---|---|")
    configs = [GSLRMConfig(image_size=size, d=args.d, n_layer=args.layers) for size in args.sizes]
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        for config in configs: speed_row(device, config, args)
    print()
    for config in configs: where(config, args.views, args.repeats)


PARTS = dict(
    patch_embedder="embedding", input_layer_norm="norms", gaussian_upsampler="decoders",
    pixel_gaussian_decoder="decoders",
)
LAYER_PARTS = dict(attn="attention", mlp="MLP", norm1="norms", norm2="norms")


def part_of(name):
    "Which part of the network a module counts for; None if none or if it lies inside another one that counts."
    if name in PARTS: return PARTS[name]
    if name.count(".") == 2: return LAYER_PARTS.get(name.split(".")[-1]) # transformer_layers.0.attn
    return None


def where(config, views, repeats):
    "Print milliseconds of each part of a forward pass, by clocks around the modules; rays apart."
    model = GSLRM(config).eval()
    images, cams, _ = inputs(config.image_size, views)
    rays, spent, started = rig_rays(cams, config), {}, {}

    def watch(module, part):
        def start(*_): started[module] = time.process_time()
        def stop(*_): spent[part] = spent.get(part, 0) + time.process_time() - started[module]
        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop)

    for name, module in model.named_modules():
        if part := part_of(name): watch(module, part)
    model(images, rays) # warms up
    spent.clear()
    start = time.process_time()
    for _ in range(repeats): model(images, rays)
    spent["patches, activations, the rest"] = time.process_time() - start - sum(spent.values())
    start = time.process_time()
    for _ in range(repeats): rig_rays(cams, config)
    spent["rays (once per rig)"] = time.process_time() - start
    longest_first = sorted(spent.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{part} {1e3*seconds/repeats:.2f} ms" for part, seconds in longest_first)
    print(f"{config.image_size} px, where the time goes: {parts}")


# full


def status(*names):
    "Fields of /proc/self/status in MB (Linux); nan elsewhere."
    path = Path("/proc/self/status")
    if not path.exists(): return [math.nan]*len(names)
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return [int(lines[name].split()[0])/1e3 for name in names]


class Watch:
    "Largest resident memory while it lasts, MB: own (anonymous) and of mapped files apart, sampled every 5 ms."

    def __enter__(self):
        self.base, self.own, self.mapped, self.on = status("RssAnon", "RssFile"), 0., 0., True
        self.start, self.cpu = time.perf_counter(), time.process_time()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()
        return self

    def sample(self):
        while self.on:
            own, mapped = status("RssAnon", "RssFile")
            self.own = max(self.own, own - self.base[0])
            self.mapped = max(self.mapped, mapped - self.base[1])
            time.sleep(.005)

    def __exit__(self, *_):
        self.on = False
        self.thread.join()
        self.seconds, self.cpu_seconds = time.perf_counter() - self.start, time.process_time() - self.cpu

    def __str__(self):
        return (f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} s of CPU time), {self.own:,.0f} MB of own memory, "
                f"{self.mapped:,.0f} MB of mapped file at most")


def show_progress(model):
    "Print when every sixth layer is done."
    start, done = time.perf_counter(), []

    def tick(*_):
        done.append(time.perf_counter() - start)
        if len(done) in (1, 6, 12, 18):
            print(f"  layer {len(done)} of {len(model.transformer_layers)} after {done[-1]:.0f} s", flush=True)

    for layer in model.transformer_layers: layer.register_forward_hook(tick)


@torch.no_grad()
def one_full(args):
    "In a process of its own: the forward pass at full size in one precision."
    torch.set_num_threads(args.threads)
    config = GSLRMConfig()
    with Watch() as made: model = GSLRM(config).eval().to(args.device)
    images, cams, _ = inputs(config.image_size, 6, args.device)
    print(f"{args.precision}: {n_parameters(config):,} weights made in {made}", flush=True)
    show_progress(model)
    is_bfloat16 = args.precision == "bfloat16"
    device_type = torch.device(args.device).type
    with Watch() as forward, torch.autocast(device_type, torch.bfloat16, enabled=is_bfloat16): g = model(images, cams)
    tokens = n_tokens(config, 6)
    flop = n_flop(config, tokens)
    print(f"{args.precision}: {tokens:,} tokens, {flop/1e12:.1f} TFLOP, {g.means.shape[1]:,} Gaussians, "
          f"{args.threads} thread(s): {forward}, the weights not counted; {flop/1e9/forward.seconds:.0f} GFLOP/s; "
          f"peak of the process {status('VmHWM')[0]:,.0f} MB", flush=True)
    assert g.means.isfinite().all() and g.means.dtype == torch.float32


def run_again(*arguments): subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)


def full(args):
    for precision in args.precisions:
        run_again("one-full", "--precision", precision, "--threads", args.threads, "--device", args.device)


# load


def write_facelift(path, with_optimizer):
    "A file in the original's layout with random weights, perceptual network and all; 183 names of `facelift_tensors`."
    rng = torch.Generator().manual_seed(0)

    def random(shape): return torch.randn(shape, generator=rng)*.02 if len(shape) > 1 else torch.ones(shape)

    def adam_state(shape):
        return dict(step=torch.tensor(21125.), exp_avg=torch.zeros(shape), exp_avg_sq=torch.zeros(shape))

    shapes = facelift_tensors(GSLRMConfig(), perceptual=True)
    weights = {name: random(shape) for name, shape in shapes.items()}
    state = {}
    if with_optimizer:
        state = {i: adam_state(shape) for i, shape in enumerate(facelift_tensors(GSLRMConfig()).values())}
    torch.save(dict(
        model=weights, lr_scheduler=dict(last_epoch=21125), fwdbwd_pass_step=21125, param_update_step=21125,
        optimizer=dict(state=state, param_groups=[]),
    ), path)


def plain_load(path):
    model = GSLRM(GSLRMConfig())
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    model.load_state_dict({name: x for name, x in state.items() if not name.startswith(PERCEPTUAL)})
    return model


LOADERS = { # path of the original's file, path of ours
    "torch.load, load_state_dict": lambda path, out: plain_load(path),
    "load_facelift": lambda path, out: load_facelift(path),
    "convert": convert,
    "load_checkpoint": lambda path, out: load_checkpoint(out),
}


def one_load(args):
    "In a process of its own: one way of loading."
    torch.set_num_threads(args.threads)
    with Watch() as watch: LOADERS[args.what](args.path, args.out)
    print(f"{args.what}: {watch}", flush=True)


def load(args):
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        path, out = Path(tmp)/"ckpt_0000000000021125.pt", Path(tmp)/"gslrm_512.safetensors"
        write_facelift(path, args.optimizer)
        print(f"{path.name}: {path.stat().st_size/1e9:.2f} GB", flush=True)
        for what in LOADERS: run_again("one-load", "--what", what, "--path", path, "--out", out)
        print(f"{out.name}: {out.stat().st_size/1e9:.2f} GB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def command(name, function, threads=1):
        p = commands.add_parser(name)
        p.set_defaults(function=function)
        p.add_argument("--threads", type=int, default=threads)
        return p

    p = command("speed", speed)
    p.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    p.add_argument("--d", type=int, default=192)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--views", type=int, default=6)
    p.add_argument("--repeats", type=int, default=15)
    p = command("full", full, threads=2)
    p.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    p.add_argument("--device", default="cpu")
    p = command("one-full", one_full)
    p.add_argument("--precision")
    p.add_argument("--device", default="cpu")
    p = command("load", load)
    p.add_argument("--optimizer", action="store_true")
    p.add_argument("--folder")
    p = command("one-load", one_load)
    for option in ("--what", "--path", "--out"): p.add_argument(option)

    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__": main()
