"""A served model under many clients, beside the same model used directly: crops a second, one crop a request.

- *offline, decoded*: `Classifier.predict` on patches that lie in memory as arrays, nothing else. The harder peer.
- *offline, from files*: the same, with each JPEG decoded before (`hematokit.imaging.reading`), one after another.
- *served*: ``hematokit serve`` in a process of its own on this machine; the clients, a thread and a connection each, in
  another process, each posts a JPEG and waits for the answer, then the next.

All take turns, each round starting with another one, and ratios are taken within a round. The server, the offline runs
and their runtimes have the same number of threads; the clients compete with the server for the processor, as they do
not in real use. Predictions of all three are compared in the same run. Loading and the first turn are not timed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from common import base_parser, crop_folder, finish, interleave, machine, say, spread, table, verdict, versions

GOAL = 0.8
DECODED, FILES, SERVED = "offline, decoded", "offline, from files", "served"


def clients(url: str, bodies: list[bytes], number: int, each: int) -> tuple[float, list[float], list[str]]:
    """Post `each` crops from every one of `number` clients; seconds in all, seconds by request, classes by crop."""
    address = urlsplit(url)
    latencies: list[list[float]] = [[] for _ in range(number)]
    classes = [""] * len(bodies)
    ready = threading.Barrier(number + 1)

    def client(index: int) -> None:
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=300)
        connection.connect()
        ready.wait()
        for turn in range(each):
            crop = (index + turn * number) % len(bodies)
            started = time.perf_counter()
            connection.request("POST", "/v1/cells", bodies[crop], {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            said = json.loads(response.read())
            latencies[index].append(time.perf_counter() - started)
            if response.status != 200:
                raise SystemExit(f"the server refused: {said}")
            classes[crop] = said["cells"][0]["predicted"]
        connection.close()

    threads = [threading.Thread(target=client, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    ready.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started, [value for part in latencies for value in part], classes


def start_server(model: Path, runtime: str, batch_size: int, environment: dict[str, str]) -> tuple[Any, str]:
    """Start ``hematokit serve`` on a free port; its process and address."""
    words = ("-m", "hematokit", "serve", str(model), "--port", "0", "--json", "--device", "cpu", "--runtime", runtime)
    process = subprocess.Popen(
        [sys.executable, *words, "--batch-size", str(batch_size)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            return process, json.loads(text)["url"]
    sys.exit("the server did not start")


def main() -> None:
    """Measure and print."""
    parser = base_parser(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, required=True, help="run or bundle")
    parser.add_argument("--runtime", default="auto", help="what computes the model, served and offline")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=8, help="requests of each client in a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the model")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    process, url = start_server(given.model, given.runtime, given.batch_size, {"OMP_NUM_THREADS": str(given.threads)})
    try:
        measure(given, process, url)
    finally:
        process.terminate()
        process.wait()


def measure(given: argparse.Namespace, process: Any, url: str) -> None:
    """Take turns."""
    import torch

    from hematokit import load_model
    from hematokit.imaging.reading import decode_rgb

    torch.set_num_threads(given.threads)
    crops = given.clients * given.requests
    files = sorted(crop_folder().rglob("*.jpg"))
    chosen = np.random.default_rng(given.seed).permutation(len(files))[:crops]
    bodies = [files[number].read_bytes() for number in chosen]
    bodies = (bodies * (crops // len(bodies) + 1))[:crops]
    patches = np.stack([decode_rgb(body, name="crop") for body in bodies])
    model: Any = load_model(given.model, device="cpu", runtime=given.runtime)
    server = psutil.Process(process.pid)
    found: dict[str, list[str]] = {}
    served: list[tuple[float, float]] = []
    latencies: list[float] = []

    def decoded() -> None:
        found[DECODED] = model.predict(patches, batch_size=given.batch_size)["predicted"].tolist()

    def from_files() -> None:
        rows: list[str] = []
        for start in range(0, crops, given.batch_size):
            part = [decode_rgb(body, name="crop") for body in bodies[start : start + given.batch_size]]
            rows += model.predict(np.stack(part), batch_size=given.batch_size)["predicted"].tolist()
        found[FILES] = rows

    with multiprocessing.get_context("spawn").Pool(1) as pool:

        def ask() -> None:
            before = server.cpu_times()
            seconds, each, found[SERVED] = pool.apply(clients, (url, bodies, given.clients, given.requests))
            after = server.cpu_times()
            served.append((seconds, after.user + after.system - before.user - before.system))
            latencies.extend(each)

        contestants = {DECODED: decoded, FILES: from_files, SERVED: ask}
        say("a turn that is not counted")
        for contestant in contestants.values():
            contestant()
        served.clear()
        latencies.clear()
        times = interleave(given.rounds, contestants)
    # Handing the pictures to the clients' process is no part of it: their own clock counts.
    wall = {name: [clock.wall for clock in times[name]] for name in (DECODED, FILES)}
    cpu = {name: [clock.cpu for clock in times[name]] for name in (DECODED, FILES)}
    wall[SERVED] = [seconds for seconds, _ in served]
    cpu[SERVED] = [seconds for _, seconds in served]
    rates = {name: spread([crops / seconds for seconds in values]) for name, values in wall.items()}
    work = {name: spread([1000 * seconds / crops for seconds in values]) for name, values in cpu.items()}
    ratios = {
        name: spread([peer / own for peer, own in zip(wall[name], wall[SERVED], strict=True)])
        for name in (DECODED, FILES)
    }
    same = {name: float(np.mean(np.array(found[name]) == np.array(found[DECODED]))) for name in found}
    ordered = sorted(latencies)
    percentiles = {str(rank): ordered[min(len(ordered) - 1, len(ordered) * rank // 100)] for rank in (50, 95, 99)}
    result = {
        "machine": machine(),
        "versions": versions("torch", "onnxruntime", "openvino", "fastapi", "uvicorn"),
        "settings": {
            "model": f"{model.config.backbone.name}:{model.config.backbone.variant} at {model.input_spec.size} px",
            "runtime": str(getattr(model, "runtime", "torch")),
            "threads": given.threads,
            "clients": given.clients,
            "crops a turn": crops,
            "batch size": given.batch_size,
            "rounds": given.rounds,
            "seed": given.seed,
        },
        "crops_per_second": rates,
        "processor_ms_per_crop": work,
        "served_over": ratios,
        "same_class": same,
        "latency_seconds": percentiles,
    }
    rows = [["", "crops/s", "quartiles", "processor ms/crop", "same class"]]
    for name, rate in rates.items():
        rows.append(
            [
                name,
                f"{rate['median']:.1f}",
                f"{rate['low']:.1f}-{rate['high']:.1f}",
                f"{work[name]['median']:.2f}",
                f"{same[name]:.4f}",
            ]
        )
    lines = [
        table(rows),
        "",
        *(f"served / {name}: {verdict(ratio, GOAL)} (goal {GOAL})" for name, ratio in ratios.items()),
        "time to answer: " + ", ".join(f"{rank} % within {1000 * value:.0f} ms" for rank, value in percentiles.items()),
    ]
    finish(given, result, lines)


if __name__ == "__main__":
    main()
