"""Camera player, estimator node and a listener for an hour: does anything grow, slow down or get lost?

    python benchmarks/soak/run.py --out runs/soak --minutes 60 --clip VIDEO --faults

Everything is written to OUT as it comes, ``soak.json`` and ``soak.md`` anew every minute, ``soak.png`` at the end. One
line for each goal tells PASS or FAIL.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "latency"))

import paper
import yaml
from faults import FAULTS, Fault, recovered
from figures import IDLE_LOAD, Goal, balance, edge_seconds, minutes, steady_goals
from session import Soak, SoakError

import hmr_prob_ros
from hmr_prob_ros.arguments import CommandError, positive_number
from hmr_prob_ros.benchmark.measure import load_warning, machine
from hmr_prob_ros.ros.processes import ProcessError

_PACKAGES = ("hmr_prob_ros", "numpy", "onnxruntime", "ai-edge-litert", "mediapipe", "rtmlib", "ros-rclpy")
_GAP = 0.5
"""Pause between two faults, in spans of ``--fault-seconds``."""
_RECOVERY = 30.0
"""Seconds that a fault may take beyond its length."""
_RESTORED = (
    "samples", "modes", "max_people", "min_score", "max_rate", "identity_memory", "publish_uncertainty",
    "publish_markers", "publish_overlay",
)  # fmt: skip


def _pair(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    try:
        if found and name:
            return name, yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE with a value in YAML")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    clip = Path(hmr_prob_ros.__file__).parent / "assets" / "demo_clip.mp4"
    add("--out", type=Path, required=True, help="folder of the results, without those of another run")
    add("--minutes", type=positive_number, default=60.0, help="(default: 60)")
    add("--clip", type=Path, default=clip, help="video that is played again and again (default: the bundled one)")
    add("--camera", type=Path, help="camera_info yaml of the clip (default: the one beside it, else 60 degrees wide)")
    add("--rate", type=positive_number, default=30.0, help="frames a second (default: 30)")
    add("--node", type=_pair, nargs="+", default=[], metavar="NAME=VALUE", help="parameters of the node")
    add("--faults", action="store_true", help=f"between beginning and end: {'; '.join(f.name for f in FAULTS)}")
    add("--fault-seconds", type=positive_number, default=20.0, help="length of a fault (default: 20)")
    add("--idle-seconds", type=positive_number, default=60.0, help="with the node deactivated (default: 60)")
    return parser


class _Run:
    """One run: what was found so far, and how it goes on."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.about = machine(_PACKAGES)
        self.result: dict[str, Any] = {
            "machine": self.about,
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
            "finished": False,
            "faults": [],
        }
        self.goals: list[Goal] = []
        self._written = 0.0

    def go(self) -> None:
        """All of it.

        Raises:
            SoakError, ProcessError: a process ended; what was found so far is written.
        """
        options = self.options
        with Soak(options.out, options.clip, options.camera, options.node, options.rate) as soak:
            soak.wait(5)
            before = soak.settled()
            soak.tell("play")
            begin = time.time_ns()
            end = begin + round(60e9 * options.minutes)
            try:
                self._play(soak, begin, end)
            finally:
                self._write(soak, begin)
            frames = balance(before, soak.settled())
            self.result["frames"] = frames
            self.goals += steady_goals(soak.log(), begin, end, frames)
            status = soak.last.values
            self.result["node"] = {
                k: v for k, v in status.items() if not k.startswith(("frames_", "stage_", "latency_"))
            }
            self._idle(soak)
            code, clean = soak.end()
            self.goals.append(
                Goal("SIGINT ends the node", "exit code 0, no traceback", f"exit code {code}", code == 0 and clean)
            )
            self.goals += self._fault_goals()
            self.result["finished"] = True
            self._write(soak, begin, end)

    def _play(self, soak: Soak, begin: int, end: int) -> None:
        edge = 1e9 * edge_seconds(1e-9 * (end - begin))
        self._wait(soak, begin, begin + edge)
        usual = {**soak.log().summary(begin, begin + edge), "level": soak.last.level, "parameters": self._parameters()}
        number = 0
        while self.options.faults:
            fault = FAULTS[number % len(FAULTS)]
            seconds = self.options.fault_seconds
            if time.time_ns() + 1e9 * ((fault.length + _GAP) * seconds + _RECOVERY) > end - edge:
                break
            self._break(soak, fault, seconds, usual)
            self._wait(soak, begin, time.time_ns() + 1e9 * _GAP * seconds)
            number += 1
        self._wait(soak, begin, end)

    def _break(self, soak: Soak, fault: Fault, seconds: float, usual: dict[str, Any]) -> None:
        start = time.time_ns()
        checks = fault.run(soak, fault.length * seconds, usual)
        stop = time.time_ns()
        checks.append(recovered(soak, usual))
        row = {"fault": fault.name, "begin": start, "end": stop, "checks": [check._asdict() for check in checks]}
        self.result["faults"].append(row)
        wrong = [check for check in checks if not check.passed]
        said = "as expected" if not wrong else "; ".join(f"{c.expected}: {c.found}" for c in wrong)
        print(f"{time.strftime('%H:%M:%S')} {fault.name}: {said}", flush=True)

    def _wait(self, soak: Soak, begin: int, until: float) -> None:
        """Go on until a moment, and write what there is every minute."""
        while (left := 1e-9 * (until - time.time_ns())) > 0:
            soak.wait(min(left, 5.0))
            if time.monotonic() - self._written > 60:
                self._write(soak, begin)

    def _idle(self, soak: Soak) -> None:
        """What the node costs while it is deactivated and the camera runs, and that it works again."""
        options = self.options
        if not soak.change_state("deactivate"):
            self.goals.append(Goal("deactivated", f"below {IDLE_LOAD:.0%} of a core", "refused", False))
            return
        soak.tell("play")
        soak.wait(3)
        begin = time.time_ns()
        soak.wait(options.idle_seconds)
        load = soak.log().load(begin, time.time_ns())
        self.result["idle_load"] = load
        self.goals.append(
            Goal(
                "CPU while deactivated, the camera running",
                f"below {IDLE_LOAD:.0%} of a core",
                f"{load:.2%} in {options.idle_seconds:g} s",
                load < IDLE_LOAD,
            )
        )
        answers = len(soak.log().answers)
        again = soak.change_state("activate") and soak.until(lambda: len(soak.log().answers) > answers, 10)
        self.goals.append(Goal("activated again", "answers", "answers" if again else "none within 10 s", again))

    def _fault_goals(self) -> list[Goal]:
        goals = []
        for fault in FAULTS if self.options.faults else ():
            rounds = [row for row in self.result["faults"] if row["fault"] == fault.name]
            good = sum(all(check["passed"] for check in row["checks"]) for row in rounds)
            found = f"{good} of {len(rounds)}" if rounds else "had no time: more --minutes or fewer --fault-seconds"
            goals.append(Goal(fault.name, "as expected every time", found, bool(rounds) and good == len(rounds)))
        return goals

    def _parameters(self) -> dict[str, Any]:
        from hmr_prob_ros.ros.parameters import PARAMETERS

        values = {parameter.name: parameter.default for parameter in PARAMETERS if parameter.name in _RESTORED}
        return {**values, **{k: v for k, v in self.options.node.items() if k in _RESTORED}}

    def _write(self, soak: Soak, begin: int, end: int | None = None) -> None:
        log, end_known = soak.log(), end is not None
        end = end or time.time_ns()
        self.result["span_ns"] = [begin, end]
        self.result["rows"] = minutes(log, begin, end)
        self.result["whole"] = log.summary(begin, end)
        edge = 1e9 * edge_seconds(60 * self.options.minutes)
        self.result["first"], self.result["last"] = log.summary(begin, begin + edge), log.summary(end - edge, end)
        self.result["goals"] = [goal._asdict() for goal in self.goals]
        paper.write(self.options.out, self.result, plot=end_known)
        self._written = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where all goals were reached, 1 where one was missed or a process ended, 2 for wrong options."""
    parser = _parser()
    options = parser.parse_args(arguments)
    options.node = dict(options.node)
    if not options.clip.is_file():
        parser.error(f"there is no video {options.clip}")
    if (options.out / "soak.json").exists():
        parser.error(f"{options.out} holds a run already: give another folder")
    try:
        import rclpy  # noqa: F401

        import hmr_prob_ros.msg  # noqa: F401
    except ImportError as error:
        parser.error(f"ROS 2 is not installed here ({error})")
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        run = _Run(options)
        if warning := load_warning(run.about):
            print(f"WARNING: {warning}", file=sys.stderr)
        print(
            f"{time.strftime('%H:%M:%S')} {options.minutes:g} minutes; figures in {options.out / 'soak.md'}", flush=True
        )
        run.go()
    except (CommandError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    except (SoakError, ProcessError) as error:
        print(f"FAIL  {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was measured is in the folder", file=sys.stderr)
        return 130
    for line in paper.goal_lines(run.goals):
        print(line)
    return 0 if all(goal.passed for goal in run.goals) else 1


if __name__ == "__main__":
    raise SystemExit(main())
