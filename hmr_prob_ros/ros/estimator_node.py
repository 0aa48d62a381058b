"""The estimator node as a program (``hmr-prob-node``): camera images in, hypotheses out.

It ends at SIGINT and SIGTERM with 0, whatever it is at. Until ROS runs there is nothing to give back, and the process
ends at once; then ROS' own handlers end the executor, and a signal only leaves a mark here, so that no exception flies
through the middle of a library. So little is imported before the signals are taken care of.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .lifecycle import EstimatorNode
    from .loading import Load

__all__ = ["main"]


class _Signals:
    """Handler of SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.come, self.at_once = False, True

    def __call__(self, number: int, frame: Any) -> None:
        self.come = True
        if self.at_once:
            os._exit(0)


def main(argv: Sequence[str] | None = None, load: Load | None = None) -> int:
    """Run the node until SIGINT or SIGTERM.

    Args:
        argv: the command line; None takes the process' own.
        load: makes the estimator, for a program with a detector or an engine of its own.

    Returns:
        0 after a signal, 2 when the node cannot start.
    """
    signals = _Signals()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signals)
    try:
        return _run(list(sys.argv if argv is None else argv), signals, load)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):  # while the interpreter comes to its end
            signal.signal(number, signal.SIG_IGN)


def _run(arguments: list[str], signals: _Signals, load: Load | None) -> int:
    import rclpy
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.utilities import remove_ros_args

    from .fastdds import remove_broken_segments
    from .lifecycle import EstimatorNode
    from .loading import load_estimator
    from .security import start_trouble

    options = _parser().parse_args(remove_ros_args(arguments)[1:])
    signals.at_once = False
    nodes: list[EstimatorNode] = []
    result, hangs = 0, False
    try:
        remove_broken_segments()
        rclpy.init(args=arguments)
        executor = SingleThreadedExecutor()
        for namespace in options.namespaces or [None]:
            nodes.append(EstimatorNode(load or load_estimator, namespace=namespace))
            executor.add_node(nodes[-1])
        for node in nodes:
            if node.settings.autostart and not signals.come and node.start():
                result = 2  # the log says why
        while rclpy.ok() and not signals.come and result == 0:
            _spin_once(executor, nodes)
    except Exception as error:
        if not signals.come:  # what ROS says after it was shut down is no news
            print(f"hmr-prob-node: {start_trouble(error)}", file=sys.stderr)
            result = 2
    finally:
        hangs = not _close(nodes)
    result = 0 if signals.come else result
    if hangs:  # a thread inside a library that does not come back may not let the interpreter end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(result)
    return result


def _spin_once(executor: Any, nodes: Sequence[EstimatorNode]) -> None:
    from rclpy.executors import ExternalShutdownException

    try:
        executor.spin_once()
    except ExternalShutdownException:
        pass
    except Exception as error:  # a message that the middleware cannot read costs that message only
        if nodes[0].context.ok():
            nodes[0].complain(f"a callback failed, {type(error).__name__}: {error}")


def _close(nodes: Sequence[EstimatorNode]) -> bool:
    import rclpy

    ended = True
    try:
        for node in nodes:
            ended = node.close() and ended
        for node in nodes:
            node.destroy_node()
        if rclpy.ok():
            rclpy.shutdown()
    except Exception as error:
        if rclpy.ok():  # the context may go at any moment
            print(f"hmr-prob-node: while closing: {error}", file=sys.stderr)
    return ended


def _parser() -> argparse.ArgumentParser:
    from .parameters import PARAMETERS

    width = max(len(p.name) for p in PARAMETERS)
    parser = argparse.ArgumentParser(
        prog="hmr-prob-node",
        usage="hmr-prob-node [--namespaces NAME ...] [--ros-args [-p NAME:=VALUE ...] [--params-file FILE]]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parameters:\n" + "\n".join(f"  {p.name:{width}} {p.default!r:20} {p.description}" for p in PARAMETERS),
    )
    parser.add_argument(
        "--namespaces", nargs="+", metavar="NAME", help="one node in each of these namespaces, for several cameras"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
