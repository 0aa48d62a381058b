"""The posterior over its settings: people, samples, modes, threads, engines; beside each time its accuracy."""

from __future__ import annotations

__all__ = ["Line", "available_engines", "measure", "plan"]

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from ..bundle import Bundle
from ..camera import Camera
from ..engines import CPU, ENGINES, PRECISIONS, Engine, EngineError, make_engine, unavailable
from ..estimator import Estimator
from ..hypotheses import Person2D
from .accuracy import Accuracy
from .measure import Meter, percentiles, timed


@dataclass(frozen=True)
class Line:
    """One setting of the posterior."""

    people: int
    samples: int
    modes: int
    threads: int
    engine: str = CPU
    precision: str = "fp32"


def plan(
    base: Line,
    people: Iterable[int],
    samples: Iterable[int],
    modes: Iterable[int],
    threads: Iterable[int],
    engines: Iterable[tuple[str, str]],
) -> list[Line]:
    """Every number of people with every number of samples; then modes, threads and engines, one changed at a time.

    Threads are also changed for the most samples, where they matter. No line comes twice, and none that asks for more
    modes than samples.
    """
    samples = sorted({*samples, base.samples})
    lines = [base]
    lines += [replace(base, people=p, samples=s) for p in sorted(set(people)) for s in samples]
    lines += [replace(base, modes=n) for n in sorted(set(modes))]
    lines += [replace(base, threads=t, samples=s) for t in sorted(set(threads)) for s in (base.samples, samples[-1])]
    lines += [replace(base, engine=name, precision=precision) for name, precision in engines]
    return [line for line in dict.fromkeys(lines) if line.modes <= line.samples]


def available_engines(names: Sequence[str]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Engines with the precisions to try, and why others cannot run here; no names: all that there are.

    Raises:
        EngineError: a name that is no engine.
    """
    found, missing = [], {}
    for name in names or ENGINES:
        if reason := "" if name == "auto" else unavailable(name):
            missing[name] = reason
        else:
            found += [(name, precision) for precision in (PRECISIONS[:1] if name == CPU else PRECISIONS)]
    return found, missing


def measure(
    lines: Sequence[Line],
    bundle: Bundle,
    person: Person2D,
    camera: Camera,
    accuracy: Accuracy,
    rounds: int = 100,
    seconds: float = 10.0,
    seed: int = 0,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Times of ``Estimator.infer`` for each line, and why an engine was left out.

    Args:
        person: seen so by the detector; several people are this one several times.
        rounds, seconds: calls of a line, fewer where they take longer than so many seconds.
        accuracy: measures the errors of each engine, precision, N and n once.

    Returns:
        Rows with the fields of the line, ``ms`` (percentiles), ``cpu_load``, ``memory_mb`` and ``accuracy`` (see
        :func:`.accuracy.errors`; None without a set); and engine -> reason.
    """
    engines: dict[tuple[str, str, int], Engine] = {}
    rows, failed = [], {}
    for line in tqdm(lines, desc="posterior", unit="line", disable=not progress):
        key = (line.engine, line.precision, line.threads)
        label = f"{line.engine} {line.precision}"
        if label in failed:
            continue
        try:
            if key not in engines:
                engines[key] = make_engine(
                    line.engine, bundle.model_path, threads=line.threads, precision=line.precision
                )
            estimator = Estimator(bundle, None, engines[key], samples=line.samples, modes=line.modes, seed=seed)
            with Meter() as meter:
                took = timed(lambda e=estimator, n=line.people: e.infer([person] * n, camera), rounds, seconds)  # type: ignore[misc]
            known = accuracy.of(estimator, line.precision)
        except EngineError as error:
            if line.engine == CPU:
                raise
            failed[label] = " ".join(str(error).split())
            continue
        rows.append({**line.__dict__, "ms": percentiles(took), **meter.summary(), "accuracy": known})
    return rows, failed
