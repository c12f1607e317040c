"""Served models under many clients, beside the same models used directly: crops a second, one JPEG crop a request.

- *offline, decoded*: `Classifier.predict` on patches that lie in memory as arrays, nothing else. The harder peer: the
  server has to decode what it gets.
- *offline, from files*: the same, with each JPEG decoded before (`hematokit.imaging.reading`), in as many threads as
  the model has. What the server would have to do if there were no HTTP.
- *served*: ``hematokit serve`` in a process of its own on this machine; the clients are in another process, each with
  a connection of its own, and each posts a JPEG, waits for the answer, and posts the next.

All take turns, each round starting with another one, and ratios are taken within a round. The server, the offline runs
and their runtimes have the same number of threads; with as many as there are cores (the default), receiving and
decoding take from what the model has. Predictions of all three are compared in the same run. Loading and the first
turn are not timed. On a busy machine the processor time a crop is the steadier figure: it counts the work, the ratio of
rates also counts who else was waiting for the processor.

Example: python benchmarks/serving.py --model runs/coatnet --model runs/efficientnetv2 --model runs/resnext50
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

from common import base_parser, crop_folder, finish, interleave, machine, say, spread, table, verdict, versions

GOAL = 0.8
PART = 64
"""Crops that are decoded before the model gets them, offline."""

DECODED, FILES, SERVED = "offline, decoded", "offline, from files", "served"


class Client(asyncio.Protocol):
    """One connection that posts crop after crop, each when the one before has been answered.

    Written on bare bytes: thirty-two clients of an ordinary library take as much of the processor as the server does.
    """

    def __init__(self, head: str, crops: list[tuple[int, bytes]]) -> None:
        self._head, self._crops = head, list(reversed(crops))
        self._said = b""
        self._crop, self._began = -1, 0.0
        self._transport: Any = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers: list[tuple[int, float, bytes]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self._transport = transport

    def ask(self) -> None:
        """Post the next crop, if there is one."""
        if not self._crops:
            self.over.set_result(None)
            self._transport.close()
            return
        self._crop, body = self._crops.pop()
        self._began = time.perf_counter()
        self._transport.write((self._head + f"Content-Length: {len(body)}\r\n\r\n").encode() + body)

    def data_received(self, data: bytes) -> None:
        """Take an answer; it is read later, when the clock stands."""
        self._said += data
        head, found, body = self._said.partition(b"\r\n\r\n")
        if not found or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        self.answers.append((self._crop, time.perf_counter() - self._began, self._said))
        self._said = b""
        self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail where the server hung up."""
        if not self.over.done():
            self.over.set_exception(error or ConnectionError("the server closed the connection"))


async def post(url: str, bodies: list[bytes], number: int, each: int) -> tuple[float, list[Client]]:
    """Post `each` crops from every one of `number` clients; seconds in all, and the clients with their answers."""
    address = urlsplit(url)
    head = f"POST /v1/cells HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: image/jpeg\r\n"
    made = []
    for index in range(number):
        crops = [(index + turn * number) % len(bodies) for turn in range(each)]
        client = Client(head, [(crop, bodies[crop]) for crop in crops])
        await asyncio.get_running_loop().create_connection(lambda client=client: client, address.hostname, address.port)
        made.append(client)
    started = time.perf_counter()
    for client in made:
        client.ask()
    await asyncio.gather(*(client.over for client in made))
    return time.perf_counter() - started, made


def clients(url: str, bodies: list[bytes], number: int, each: int) -> tuple[float, list[float], list[str]]:
    """Post from many clients; seconds in all, seconds by request, classes by crop."""
    seconds, made = asyncio.run(post(url, bodies, number, each))
    classes, latencies = [""] * len(bodies), []
    for crop, latency, said in (answer for client in made for answer in client.answers):
        head, _, body = said.partition(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise SystemExit(f"the server refused: {body.decode()}")
        latencies.append(latency)
        classes[crop] = json.loads(body)["cells"][0]["predicted"]
    return seconds, latencies, classes


def start_server(
    model: Path, runtime: str, batch_size: int | None, environment: dict[str, str]
) -> tuple[subprocess.Popen[str], str]:
    """Start ``hematokit serve`` on a free port; its process and address."""
    words = [sys.executable, "-m", "hematokit", "serve", str(model), "--port", "0", "--json", "--device", "cpu"]
    words += ["--runtime", runtime] + ([] if batch_size is None else ["--batch-size", str(batch_size)])
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
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
    parser.add_argument("--model", type=Path, action="append", required=True, help="run or bundle; may be repeated")
    parser.add_argument("--runtime", default="auto", help="what computes the model, served and offline")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=8, help="requests of each client in a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, help="of the server; what it takes by itself unless told")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the model")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import torch

    torch.set_num_threads(given.threads)
    crops = given.clients * given.requests
    files = sorted(crop_folder().rglob("*.jpg"))
    chosen = np.random.default_rng(given.seed).permutation(len(files))[:crops]
    bodies = [files[number].read_bytes() for number in chosen]
    bodies = (bodies * (crops // len(bodies) + 1))[:crops]
    models = []
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        for model in given.model:
            process, url = start_server(model, given.runtime, given.batch_size, {"OMP_NUM_THREADS": str(given.threads)})
            try:
                models.append(measure(model, given, bodies, pool, psutil.Process(process.pid), url))
            finally:
                process.terminate()
                process.wait()
    result = {
        "machine": machine(),
        "versions": versions("torch", "onnxruntime", "openvino", "fastapi", "uvicorn", "httptools", "uvloop"),
        "settings": {
            "runtime": given.runtime,
            "threads": given.threads,
            "clients": given.clients,
            "crops a turn": crops,
            "rounds": given.rounds,
            "seed": given.seed,
        },
        "models": models,
    }
    finish(given, result, [line for model in models for line in said(model)])


def measure(
    path: Path, given: argparse.Namespace, bodies: list[bytes], pool: Any, server: psutil.Process, url: str
) -> dict[str, Any]:
    """Take turns with one model."""
    from hematokit import load_model
    from hematokit.imaging.reading import decode_rgb

    crops = len(bodies)
    patches = np.stack([decode_rgb(body, name="crop") for body in bodies])
    model: Any = load_model(path, device="cpu", runtime=given.runtime)
    found: dict[str, list[str]] = {}
    served: list[tuple[float, float]] = []
    latencies: list[float] = []

    def decoded() -> None:
        found[DECODED] = model.predict(patches)["predicted"].tolist()

    def from_files() -> None:
        rows: list[str] = []
        with ThreadPoolExecutor(given.threads) as threads:
            for start in range(0, crops, PART):
                part = list(threads.map(lambda body: decode_rgb(body, name="crop"), bodies[start : start + PART]))
                rows += model.predict(np.stack(part))["predicted"].tolist()
        found[FILES] = rows

    def ask() -> None:
        before = server.cpu_times()
        seconds, each, found[SERVED] = pool.apply(clients, (url, bodies, given.clients, given.requests))
        after = server.cpu_times()
        served.append((seconds, after.user + after.system - before.user - before.system))
        latencies.extend(each)

    contestants = {DECODED: decoded, FILES: from_files, SERVED: ask}
    say(f"{path}: a turn that is not counted")
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

    def over_served(kind: dict[str, list[float]]) -> dict[str, dict[str, float]]:
        return {
            name: spread([peer / own for peer, own in zip(kind[name], kind[SERVED], strict=True)])
            for name in (DECODED, FILES)
        }

    ordered = sorted(latencies)
    return {
        "model": f"{model.config.backbone.name}:{model.config.backbone.variant} at {model.input_spec.size} px",
        "runtime": str(getattr(model, "runtime", "torch")),
        "crops_per_second": {name: spread([crops / seconds for seconds in values]) for name, values in wall.items()},
        "processor_ms_per_crop": {
            name: spread([1000 * seconds / crops for seconds in values]) for name, values in cpu.items()
        },
        "served_over": over_served(wall),
        "processor_over_served": over_served(cpu),
        "same_class": {name: float(np.mean(np.array(found[name]) == np.array(found[DECODED]))) for name in found},
        "latency_seconds": {
            str(rank): ordered[min(len(ordered) - 1, len(ordered) * rank // 100)] for rank in (50, 95, 99)
        },
    }


def said(model: dict[str, Any]) -> list[str]:
    """What was found of one model, for a person."""
    rows = [["", "crops/s", "quartiles", "processor ms/crop", "same class"]]
    for name, rate in model["crops_per_second"].items():
        rows.append(
            [
                name,
                f"{rate['median']:.1f}",
                f"{rate['low']:.1f}-{rate['high']:.1f}",
                f"{model['processor_ms_per_crop'][name]['median']:.2f}",
                f"{model['same_class'][name]:.4f}",
            ]
        )
    return [
        f"{model['model']}, {model['runtime']}",
        table(rows),
        *(f"served / {name}: {verdict(ratio, GOAL)} (goal {GOAL})" for name, ratio in model["served_over"].items()),
        "processor time a crop, against served: "
        + ", ".join(f"{name} {ratio['median']:.3f}" for name, ratio in model["processor_over_served"].items()),
        "time to answer: "
        + ", ".join(f"{rank} % within {1000 * value:.0f} ms" for rank, value in model["latency_seconds"].items()),
        "",
    ]


if __name__ == "__main__":
    main()
