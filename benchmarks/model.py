"""Time GS-LRM beside a plain reading of its description, run it once at full size, and measure the loading of a file as large as the released one.

`speed`  64 and 128 px, d 192, 6 layers, 6 views, one thread, both networks in turn in one process, with the same weights; medians of CPU time.
`full`   one forward pass at 6 x 512 x 512, 303,565,824 random weights, in a process of its own for each precision; minutes on a CPU.
`load`   writes a checkpoint in the original's layout with random weights (1.3 GB, 3.7 GB with --optimizer) to a temporary folder, then loads and converts it in fresh processes.

Ratios between columns of one row mean something on any machine; milliseconds only on a quiet one. Rows marked "cuda" appear only where torch sees a CUDA device.
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
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig, n_flop, n_parameters, n_tokens, rig_rays


class Plain(nn.Module):
    "The released flags, step by step in the order of the description, with all tensors that it returns; the obvious way, channels first."

    def __init__(self, c):
        super().__init__()
        norm, linear = lambda n: nn.LayerNorm(n, bias=False), lambda a, b: nn.Linear(a, b, bias=False)
        self.c, d, p2 = c, c.d, c.patch_size**2
        self.gaussian_position_embeddings = nn.Parameter(torch.zeros(c.n_gaussians, d))
        self.patch_embedder = nn.Sequential(nn.Identity(), linear(p2*9, d))
        self.input_layer_norm = norm(d)
        self.transformer_layers = nn.ModuleList()
        for _ in range(c.n_layer):
            layer = nn.Module()
            layer.norm1, layer.norm2, layer.attn, layer.mlp = norm(d), norm(d), nn.Module(), nn.Module()
            layer.attn.to_qkv, layer.attn.fc = linear(d, 3*d), linear(d, d)
            layer.mlp.mlp = nn.Sequential(linear(d, 4*d), nn.GELU(), linear(4*d, d))
            self.transformer_layers.append(layer)
        self.gaussian_upsampler = nn.Module()
        self.gaussian_upsampler.layernorm, self.gaussian_upsampler.linear = norm(d), linear(d, c.n_out)
        self.pixel_gaussian_decoder = nn.Sequential(norm(d), linear(d, p2*c.n_out))

    def rays(self, image, fxfycxcy, c2w):
        B, V, _, H, W = image.shape
        j, i = torch.meshgrid(torch.arange(H, device=image.device), torch.arange(W, device=image.device), indexing="ij")
        x, y = i.flatten() + .5, j.flatten() + .5
        f = fxfycxcy.reshape(B*V, 4)
        cam = torch.stack([(x - f[:, 2:3])/f[:, :1], (y - f[:, 3:])/f[:, 1:2], torch.ones(B*V, H*W, device=image.device)], -1)
        cam = normalize(cam, dim=-1)
        M = c2w.reshape(B*V, 4, 4)
        d = normalize(torch.bmm(cam, M[:, :3, :3].transpose(1, 2)), dim=-1)
        o = M[:, None, :3, 3].expand_as(d)
        image_like = lambda t: t.transpose(1, 2).reshape(B, V, -1, H, W)
        xy = torch.stack([x/W*2 - 1, y/H*2 - 1], -1)[None].expand(B*V, -1, -1)
        return image_like(o), image_like(d), image_like(cam), image_like(xy)

    def forward(self, image, fxfycxcy, c2w):
        c, p = self.c, self.c.patch_size
        B, V, _, H, W = image.shape
        h, w = H//p, W//p
        o, d, ray_d_cam, xy_norm = self.rays(image, fxfycxcy, c2w)
        nearest = o - (o*d).sum(2, keepdim=True)*d
        posed = torch.cat([image*2 - 1, d, nearest], 2)
        patches = posed.reshape(B*V, 9, h, p, w, p).permute(0, 2, 4, 3, 5, 1).reshape(B*V, h*w, p*p*9)
        tokens = self.patch_embedder(patches).reshape(B, V*h*w, c.d)
        x = self.input_layer_norm(torch.cat([self.gaussian_position_embeddings[None].expand(B, -1, -1), tokens], 1))
        for layer in self.transformer_layers:
            q, k, v = layer.attn.to_qkv(layer.norm1(x)).chunk(3, -1)
            heads = lambda t: t.reshape(B, -1, c.d//c.d_head, c.d_head).transpose(1, 2)
            mixed = scaled_dot_product_attention(heads(q), heads(k), heads(v))
            x = x + layer.attn.fc(mixed.transpose(1, 2).reshape(B, -1, c.d))
            x = x + layer.mlp.mlp(layer.norm2(x))
        free, img_tokens = x[:, :c.n_gaussians], x[:, c.n_gaussians:]
        free = self.gaussian_upsampler.linear(self.gaussian_upsampler.layernorm(free))
        pixel = self.pixel_gaussian_decoder(img_tokens).reshape(B, -1, c.n_out)
        raw = torch.cat([free, pixel], 1)
        xyz, sh, scale, rotation, opacity = raw.split([3, 3, 3, 4, 1], -1)
        patch_order = lambda t: t.reshape(B, V, 3, h, p, w, p).permute(0, 1, 3, 5, 4, 6, 2).reshape(B, V*H*W, 3)
        ro, rd = patch_order(o), patch_order(d)
        t = (2*torch.sigmoid(xyz[:, c.n_gaussians:].mean(-1, keepdim=True)) - 1)*1.8 - (ro*rd).sum(-1, keepdim=True)
        xyz = torch.cat([xyz[:, :c.n_gaussians], ro + t*rd], 1)
        pixelalign = xyz[:, c.n_gaussians:].reshape(B, V, h, w, p, p, 3).permute(0, 1, 6, 2, 4, 3, 5).reshape(B, V, 3, H, W)
        gaussians = xyz, sh[:, :, None], torch.exp((scale - 2.3).clamp(max=-1.2)), normalize(rotation, dim=-1), torch.sigmoid(opacity - 2)
        return dict(gaussians=gaussians, pixelalign_xyz=pixelalign, img_tokens=img_tokens, ray_o=o, ray_d=d, ray_d_cam=ray_d_cam, xy_norm=xy_norm)


def inputs(size, views, device="cpu"):
    "Pictures and cameras, channels last for one network and first for the other."
    cams = facelift_rig(size, n=8, elevation=0.)[:views]
    cams = replace(cams, K=cams.K[None].float(), w2c=cams.w2c[None].float()).to(device)
    images = torch.rand(1, views, size, size, 3, generator=torch.Generator().manual_seed(0)).to(device)
    K = cams.K
    plain = images.permute(0, 1, 4, 2, 3).contiguous(), torch.stack([K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]], -1), torch.linalg.inv(cams.w2c)
    return images, cams, plain


def in_turn(calls, repeats, cuda=False):
    "Median milliseconds of each call, one after the other `repeats` times: CPU time, or wall time on a CUDA device."
    clock = time.perf_counter if cuda else time.process_time
    times = {k: [] for k in calls}
    for n in range(repeats + 2):
        for k, f in calls.items():
            if cuda: torch.cuda.synchronize()
            start = clock()
            f()
            if cuda: torch.cuda.synchronize()
            if n > 1: times[k].append(1e3*(clock() - start))
    return {k: statistics.median(v) for k, v in times.items()}


@torch.no_grad()
def speed(args):
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), d {args.d}, {args.layers} layers, {args.views} views, medians of {args.repeats}\n")
    print("| device | pixels | tokens | plain reading, ms | cameras in, ms | rays worked out before, ms | cameras : plain | rays : plain | largest difference |\n|---|---|---|---|---|---|---|---|---|")
    for device in ["cpu"] + ["cuda"]*torch.cuda.is_available():
        for size in args.sizes:
            c = GSLRMConfig(image_size=size, d=args.d, n_layer=args.layers)
            torch.manual_seed(0)
            ours, plain = GSLRM(c).eval().to(device), Plain(c).eval().to(device)
            plain.load_state_dict(ours.state_dict())
            images, cams, x = inputs(size, args.views, device)
            rig = rig_rays(cams, c)
            off = (ours(images, cams).means - plain(*x)["gaussians"][0]).abs().max().item()
            ms = in_turn(dict(plain=lambda: plain(*x), cameras=lambda: ours(images, cams), rays=lambda: ours(images, rig)), args.repeats, device == "cuda")
            print(f"| {device} | {size} | {n_tokens(c, args.views)} | {ms['plain']:.1f} | {ms['cameras']:.1f} | {ms['rays']:.1f} | {ms['cameras']/ms['plain']:.3f} | {ms['rays']/ms['plain']:.3f} | {off:.0e} |")
    print()
    for size in args.sizes: where(GSLRMConfig(image_size=size, d=args.d, n_layer=args.layers), args.views, args.repeats)


def where(c, views, repeats):
    "Print milliseconds of each part of a forward pass, by clocks around the modules; rays apart."
    model = GSLRM(c).eval()
    images, cams, _ = inputs(c.image_size, views)
    rig, spent, started = rig_rays(cams, c), {}, {}
    parts = {"patch_embedder": "embedding", "input_layer_norm": "norms", "gaussian_upsampler": "decoders", "pixel_gaussian_decoder": "decoders"}
    for name, m in model.named_modules():
        part = parts.get(name) or {"attn": "attention", "mlp": "MLP", "norm1": "norms", "norm2": "norms"}.get(name.split(".")[-1] if name.count(".") == 2 else "")
        if not part: continue
        m.register_forward_pre_hook(lambda m, _: started.__setitem__(m, time.process_time()))
        m.register_forward_hook(lambda m, *_, part=part: spent.__setitem__(part, spent.get(part, 0) + time.process_time() - started[m]))
    model(images, rig), spent.clear()
    start = time.process_time()
    for _ in range(repeats): model(images, rig)
    spent["patches, activations, the rest"] = time.process_time() - start - sum(spent.values())
    start = time.process_time()
    for _ in range(repeats): rig_rays(cams, c)
    spent["rays (once per rig)"] = time.process_time() - start
    print(f"{c.image_size} px, where the time goes: " + ", ".join(f"{k} {1e3*v/repeats:.2f} ms" for k, v in sorted(spent.items(), key=lambda x: -x[1])))


def status(*names):
    "Fields of /proc/self/status in MB (Linux); nan elsewhere."
    path = Path("/proc/self/status")
    if not path.exists(): return [math.nan]*len(names)
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return [int(lines[n].split()[0])/1e3 for n in names]


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
            self.own, self.mapped = max(self.own, own - self.base[0]), max(self.mapped, mapped - self.base[1])
            time.sleep(.005)

    def __exit__(self, *_):
        self.on = False
        self.thread.join()
        self.seconds, self.cpu_seconds = time.perf_counter() - self.start, time.process_time() - self.cpu

    def __str__(self): return f"{self.seconds:.1f} s ({self.cpu_seconds:.1f} s of CPU time), {self.own:,.0f} MB of own memory, {self.mapped:,.0f} MB of mapped file at most"


@torch.no_grad()
def one_full(args):
    "In a process of its own: the forward pass at full size in one precision."
    torch.set_num_threads(args.threads)
    c = GSLRMConfig()
    with Watch() as made: model = GSLRM(c).eval().to(args.device)
    images, cams, _ = inputs(c.image_size, 6, args.device)
    print(f"{args.precision}: {n_parameters(c):,} weights made in {made}", flush=True)
    start, done = time.perf_counter(), []
    def tick(*_):
        done.append(time.perf_counter() - start)
        if len(done) in (1, 6, 12, 18): print(f"  layer {len(done)} of {c.n_layer} after {done[-1]:.0f} s", flush=True)
    for layer in model.transformer_layers: layer.register_forward_hook(tick)
    with Watch() as w, torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.precision == "bfloat16"): g = model(images, cams)
    T = n_tokens(c, 6)
    print(f"{args.precision}: {T:,} tokens, {n_flop(c, T)/1e12:.1f} TFLOP, {g.means.shape[1]:,} Gaussians, {args.threads} thread(s): {w}, the weights not counted; {n_flop(c, T)/1e9/w.seconds:.0f} GFLOP/s; peak of the process {status('VmHWM')[0]:,.0f} MB", flush=True)
    assert g.means.isfinite().all() and g.means.dtype == torch.float32


def full(args):
    for p in args.precisions: subprocess.run([sys.executable, __file__, "one-full", "--precision", p, "--threads", str(args.threads), "--device", args.device], check=True)


def write_facelift(path, optimizer):
    "A file in the original's layout with random weights, perceptual network and all; see `facelift.facelift_tensors` for its 183 names."
    from gslrm_mouse.models.facelift import facelift_tensors
    g = torch.Generator().manual_seed(0)
    rand = lambda shape: torch.randn(shape, generator=g)*.02 if len(shape) > 1 else torch.ones(shape)
    names = facelift_tensors(GSLRMConfig(), perceptual=True)
    state = dict(model={k: rand(v) for k, v in names.items()}, lr_scheduler=dict(last_epoch=21125), fwdbwd_pass_step=21125, param_update_step=21125)
    moments = {i: dict(step=torch.tensor(21125.), exp_avg=torch.zeros(v), exp_avg_sq=torch.zeros(v)) for i, v in enumerate(facelift_tensors(GSLRMConfig()).values())} if optimizer else {}
    torch.save({**state, "optimizer": dict(state=moments, param_groups=[])}, path)


def one_load(args):
    "In a process of its own: one way of loading."
    torch.set_num_threads(args.threads)
    from gslrm_mouse.models.checkpoint import load_checkpoint
    from gslrm_mouse.models.facelift import convert, load_facelift
    with Watch() as w:
        if args.what == "load_facelift": model = load_facelift(args.path)
        if args.what == "convert": convert(args.path, args.out)
        if args.what == "load_checkpoint": model, _ = load_checkpoint(args.out)
        if args.what == "torch.load, load_state_dict":
            model = GSLRM(GSLRMConfig())
            model.load_state_dict({k: v for k, v in torch.load(args.path, map_location="cpu", weights_only=True)["model"].items() if not k.startswith("loss_calculator.")})
    print(f"{args.what}: {w}", flush=True)


def load(args):
    with tempfile.TemporaryDirectory(dir=args.folder) as tmp:
        path, out = Path(tmp)/"ckpt_0000000000021125.pt", Path(tmp)/"gslrm_512.safetensors"
        write_facelift(path, args.optimizer)
        print(f"{path.name}: {path.stat().st_size/1e9:.2f} GB", flush=True)
        for what in ("torch.load, load_state_dict", "load_facelift", "convert", "load_checkpoint"):
            subprocess.run([sys.executable, __file__, "one-load", "--what", what, "--path", str(path), "--out", str(out)], check=True)
        print(f"{out.name}: {out.stat().st_size/1e9:.2f} GB")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True)
    def command(name, f, **options):
        p = sub.add_parser(name)
        p.set_defaults(f=f)
        p.add_argument("--threads", type=int, default=options.pop("threads", 1))
        for k, kw in options.items(): p.add_argument("--" + k, **kw)
    command("speed", speed, sizes=dict(type=int, nargs="+", default=[64, 128]), d=dict(type=int, default=192), layers=dict(type=int, default=6), views=dict(type=int, default=6), repeats=dict(type=int, default=15))
    command("full", full, threads=2, precisions=dict(nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"]), device=dict(default="cpu"))
    command("one-full", one_full, precision=dict(), device=dict(default="cpu"))
    command("load", load, optimizer=dict(action="store_true"), folder=dict(default=None))
    command("one-load", one_load, what=dict(), path=dict(), out=dict())
    args = parser.parse_args()
    args.f(args)


if __name__ == "__main__":
    main()
