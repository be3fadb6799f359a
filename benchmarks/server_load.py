"""Many clients at once ask a server on this machine, and some hang up: python benchmarks/server_load.py --cancel 0.25

Asks `/v1/completions` for streams, so it measures `vkllm serve` and llama-server alike. It prints tokens a second in
all, times to the first token, answers that were lost and why, how long `/health` took meanwhile, and the memory of the
server's processes. It ends with 1 if an answer was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import ipaddress
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import httpx

HEALTH_EVERY_S = 0.1
WORDS = ("the", "of", "a", "sea", "light", "and", "stone", "old", "green", "river", "house", "to", "walks", "slowly")


@dataclass
class Answer:
    """What became of a request. pieces_s: when pieces came, in seconds since the first request of all."""

    sent_s: float
    end: str = "lost"
    pieces_s: list[float] = field(default_factory=list)
    n_tokens: int = 0

    def tokens_until(self, end_s: float) -> float:
        """Its tokens that had come by then; a piece may be of several."""
        share = sum(piece_s <= end_s for piece_s in self.pieces_s) / max(len(self.pieces_s), 1)
        return self.n_tokens * share


class Load:
    """Clients that ask without a pause until time is over, and wait for the answers that run then."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.answers: list[Answer] = []
        self.problems: Counter[str] = Counter()
        self.memory: list[tuple[float, dict[str, int]]] = []
        self._random = random.Random(options.seed)
        self._typical_s = 1.0
        self._start_s = time.perf_counter()

    async def run(self) -> None:
        """Runs all clients."""
        limits = httpx.Limits(max_connections=self.options.connections)
        headers = {"Authorization": f"Bearer {self.options.api_key}"} if self.options.api_key else {}
        async with httpx.AsyncClient(
            base_url=self.options.url, limits=limits, timeout=self.options.patience, headers=headers
        ) as http_client:
            self._start_s = time.perf_counter()
            watching = asyncio.create_task(self._watch_memory())
            clients = [asyncio.create_task(self._client(http_client)) for _ in range(self.options.connections)]
            _, late = await asyncio.wait(clients, timeout=self.options.seconds + self.options.patience)
            for task in late:
                task.cancel()
            self.problems["no answer in time"] += len(late)
            results = await asyncio.gather(*clients, return_exceptions=True)
            self.problems.update(repr(each) for each in results if isinstance(each, Exception))
            watching.cancel()

    def _now_s(self) -> float:
        return time.perf_counter() - self._start_s

    async def _client(self, http_client: httpx.AsyncClient) -> None:
        while self._now_s() < self.options.seconds:
            answer = Answer(self._now_s())
            self.answers.append(answer)
            hangs_up = self._random.random() < self.options.cancel
            patience_s = self._random.random() * self._typical_s if hangs_up else self.options.patience
            try:
                async with asyncio.timeout(patience_s):
                    await self._ask(http_client, answer)
                self._typical_s = 0.9 * self._typical_s + 0.1 * (self._now_s() - answer.sent_s)
            except TimeoutError:
                answer.end = "cancelled" if hangs_up else "lost"
                answer.n_tokens = len(answer.pieces_s)
                self.problems["no answer in time"] += not hangs_up
            except httpx.HTTPError as error:
                self.problems[type(error).__name__] += 1
            if answer.end == "lost":
                await asyncio.sleep(0.1)  # a server that refuses is not asked more often for it

    async def _ask(self, http_client: httpx.AsyncClient, answer: Answer) -> None:
        body = {
            "prompt": " ".join(self._random.choices(WORDS, k=self.options.prompt_words)),
            "max_tokens": self.options.tokens,
            "temperature": 0.8,
            "seed": self._random.randrange(2**31),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | ({"model": self.options.model} if self.options.model else {})
        async with http_client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                self.problems[f"status {response.status_code}: {response.text[:100]}"] += 1
                return
            reason, last = None, ""
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                last = line[6:]
                if last == "[DONE]":
                    break
                chunk = json.loads(last)
                if "error" in chunk:
                    self.problems[str(chunk["error"])[:100]] += 1
                    return
                for choice in chunk.get("choices", ()):
                    if choice.get("text"):
                        answer.pieces_s.append(self._now_s())
                    reason = choice.get("finish_reason") or reason
                if usage := chunk.get("usage"):
                    answer.n_tokens = usage["completion_tokens"]
        if last != "[DONE]" or reason is None:
            self.problems["a stream that ended early"] += 1
        elif answer.n_tokens != self.options.tokens:
            self.problems[f"{answer.n_tokens} tokens instead of {self.options.tokens}"] += 1
        else:
            answer.end = "whole"

    async def _watch_memory(self) -> None:
        pid = self.options.pid or listening_process(urlsplit(self.options.url).port or 80)
        while pid is not None:
            self.memory.append((self._now_s(), {name: rss_bytes(each) for each, name in family(pid)}))
            await asyncio.sleep(1)


def watch_health(url: str, answers: Connection) -> None:
    """Asks `/health` again and again in a process of its own until it is told to end; sends all times in seconds."""
    parts, times_s, n_failed = urlsplit(url), [], 0
    while not answers.poll(HEALTH_EVERY_S):
        started = time.perf_counter()
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        try:
            connection.request("GET", "/health")
            n_failed += connection.getresponse().status != 200
        except OSError:
            n_failed += 1
        finally:
            connection.close()
        times_s.append(time.perf_counter() - started)
    answers.send((times_s, n_failed))


def listening_process(port: int) -> int | None:
    """The process that listens at a port of this machine, where the system tells."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:] if Path(table).exists() else ():
            parts = line.split()
            if parts[3] == "0A" and int(parts[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{parts[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(entry) in sockets for entry in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:
            continue
    return None


def family(pid: int) -> list[tuple[int, str]]:
    """A process and its children, with names."""
    found = [(pid, "server")]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [(int(child), f"engine {child}") for child in children.read_text().split()]
        except OSError:
            continue
    return found


def rss_bytes(pid: int) -> int:
    """Memory that a process has in RAM; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def shares(values: Sequence[float], scale: float = 1.0) -> str:
    """The median and rarer values of a list, as a line."""
    ordered = sorted(values)
    if not ordered:
        return "none"
    marks = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
    chosen = {name: ordered[min(int(share * len(ordered)), len(ordered) - 1)] * scale for name, share in marks.items()}
    return "  ".join(f"{name} {value:.3g}" for name, value in chosen.items())


def report(load: Load, health_s: list[float], n_unhealthy: int) -> None:
    """Prints what was measured."""
    options, ends = load.options, Counter(answer.end for answer in load.answers)
    n_tokens = sum(answer.tokens_until(options.seconds) for answer in load.answers)
    first_s = [answer.pieces_s[0] - answer.sent_s for answer in load.answers if answer.pieces_s]
    gaps_s = [
        (answer.pieces_s[-1] - answer.pieces_s[0]) / (answer.n_tokens - 1)
        for answer in load.answers
        if answer.end == "whole" and answer.n_tokens > 1
    ]
    print(f"{options.url}: {options.connections} connections, {options.seconds:g} s, {options.tokens} tokens an answer")
    print(f"tokens a second      {n_tokens / options.seconds:.1f}")
    print(f"answers              {ends['whole']} whole, {ends['cancelled']} cancelled, {ends['lost']} lost")
    print(f"first token, s       {shares(first_s)}")
    print(f"a token after it, ms {shares(gaps_s, 1000)}")
    slow = sum(each > 0.1 for each in health_s) / max(len(health_s), 1)
    print(f"health, ms           {shares(health_s, 1000)}  over 100 ms {slow:.1%}  failed {n_unhealthy}")
    for name in dict.fromkeys(name for _, sizes in load.memory for name in sizes):
        most: dict[int, float] = {}
        for at_s, sizes in load.memory:
            minute = int(at_s // 60)
            most[minute] = max(most.get(minute, 0.0), sizes.get(name, 0) / 2**20)
        print(f"{name + ', MiB':20} {'  '.join(f'{size:.1f}' for size in most.values())}  (most in each minute)")
    for problem, count in load.problems.items():
        if count:
            print(f"{count} x {problem}")


def checked(options: argparse.Namespace) -> argparse.Namespace:
    """The options, if the server is on this machine. Ends the program otherwise."""
    host = urlsplit(options.url).hostname or ""
    try:
        is_here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = False
    if not is_here:
        sys.exit(f"{options.url} is not on this machine; the load is for loopback addresses only")
    if not 1 <= options.connections <= 512 or not 1 <= options.seconds <= 600 or options.tokens < 1:
        sys.exit("give 1 to 512 connections, 1 to 600 seconds, and one token or more")
    return options


def main() -> int:
    """Reads the command line, runs the load and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="of the server, on this machine")
    parser.add_argument("--connections", type=int, default=64, help="clients at once")
    parser.add_argument("--seconds", type=float, default=60, help="how long they ask")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--prompt-words", type=int, default=24, help="of each prompt, chosen at random")
    parser.add_argument("--cancel", type=float, default=0.25, help="the share of requests that hang up; 0 is none")
    parser.add_argument("--patience", type=float, default=300, help="seconds after which an answer is lost")
    parser.add_argument("--model", help="the name in requests, if the server has several models")
    parser.add_argument("--api-key", help="if the server needs one")
    parser.add_argument("--pid", type=int, help="the server's process, if it is not the one that listens at the port")
    parser.add_argument("--seed", type=int, default=1, help="of prompts and cancellations")
    options = checked(parser.parse_args())
    ours, theirs = multiprocessing.Pipe()
    watcher = multiprocessing.Process(target=watch_health, args=(options.url, theirs), daemon=True)
    watcher.start()
    load = Load(options)
    asyncio.run(load.run())
    ours.send(None)
    health_s, n_unhealthy = ours.recv()
    watcher.join()
    report(load, health_s, n_unhealthy)
    return int(any(answer.end == "lost" for answer in load.answers))


if __name__ == "__main__":
    sys.exit(main())
