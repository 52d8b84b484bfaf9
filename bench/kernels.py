"""The monitor's kernels on this GPU, beside what torch does instead: ``python -m bench.kernels``.

Microseconds of one call, replayed in a CUDA graph, as decodes are; the median of many replays. ``--write H100`` keeps
the constants of ``monitor.cost`` that come closest to what the taps use, under that name.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from bench.points import TapPoint
from monitor.seam.tap import WIDEST_KERNEL, _tap

CALLS, REPLAYS = 20, 30


def microseconds(call: Callable[[], object]) -> float:
    """Of one call in a graph of ``CALLS``."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1000 / CALLS)
    return float(sorted(times)[REPLAYS // 2])


def main() -> None:
    """Prints a table of both."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels")
    parser.add_argument("--write", metavar="DEVICE", help="a GPU named in monitor/cost.json")
    args = parser.parse_args()
    try:
        from monitor.kernels.pack import Packer
        from monitor.kernels.score import plan, score
    except ImportError as error:
        raise SystemExit(f"bench.kernels: {error}; run it where vLLM has a GPU") from None
    used_ones: list[TapPoint] = []
    print("| tap: rows x d x columns | torch, us | Triton, us |\n|---|---|---|")
    none = torch.zeros(0, device="cuda")
    used = torch.ones(1, dtype=torch.int64, device="cuda")
    for d in (2048, 4096):
        for columns in (16, 1000):
            weight = torch.randn(d, columns, device="cuda")
            scratch = torch.zeros(plan(d, columns).scratch, device="cuda")
            for rows in (1, 32, 256, 2048, 8192):
                x = torch.randn(rows, d, device="cuda").to(torch.bfloat16)
                out = torch.empty(rows, columns, device="cuda")
                by_torch = microseconds(lambda: _tap(x, weight, out, none, used, scratch))  # noqa: B023
                by_triton = microseconds(lambda: score(x, weight, out, none, scratch))  # noqa: B023
                chosen = by_triton if columns <= WIDEST_KERNEL else by_torch
                used_ones.append(TapPoint(d, rows, columns, chosen * 1e-6))
                print(f"| {rows} x {d} x {columns} | {by_torch:.1f} | {by_triton:.1f} |", flush=True)
    print("\n| taking a step: layers x rows x columns | torch, us | Triton, us |\n|---|---|---|")
    for layers, rows, columns in ((3, 1, 16), (3, 256, 16), (1, 256, 1000)):
        scores = torch.randn(layers, 8192, columns, device="cuda")
        packer = Packer(scores, torch.zeros(layers, 0, device="cuda"))
        settled = {
            "positions": torch.zeros(rows, dtype=torch.int64, device="cuda"),
            "slots": torch.zeros(rows, dtype=torch.int64, device="cuda"),
            "starts": torch.zeros(rows + 1, dtype=torch.int32, device="cuda"),
        }

        def by_clones() -> None:
            for one in (scores[:, :rows], *settled.values()):  # noqa: B023
                one.clone()
            scores.fill_(0)  # noqa: B023

        both = microseconds(by_clones), microseconds(lambda: packer.take(settled, rows, rows, columns))  # noqa: B023
        print(f"| {layers} x {rows} x {columns} | {both[0]:.1f} | {both[1]:.1f} |", flush=True)
    if args.write:
        from bench.fit import keep_taps

        keep_taps(args.write, used_ones, f"{torch.cuda.get_device_name(0)}; python -m bench.kernels --write")


if __name__ == "__main__":
    main()
