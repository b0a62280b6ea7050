"""The node as a process: it ends cleanly by Ctrl-C and SIGTERM, with every image answered that it received."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from queue import SimpleQueue
from types import FrameType

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from flss_edge_ros.node import ClassifierNode

_DEFECT = 70  # exit code, as the command line's


class Ending:
    """Why the process ends; whoever says so wakes the main thread up.

    ROS's own handlers would end the context at once, and the results that are due could not be published any more. A
    second signal ends the process at once: an engine that hangs while it is opened cannot be interrupted.
    """

    def __init__(self) -> None:
        # No Event: a handler that interrupts its own thread in one's lock would wait for itself. A SimpleQueue may be
        # put to in a handler.
        self._codes: SimpleQueue[int] = SimpleQueue()
        self._signals = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._signalled)

    def say(self, code: int) -> None:
        """End with an exit code; the first one counts."""
        self._codes.put(code)

    def wait(self) -> int:
        """Wait until somebody said so, and return the code: for the main thread, which runs the handlers of signals."""
        return self._codes.get()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + number)
        self.say(128 + number)


class RosLog(logging.Handler):
    """Passes on what flss_runtime logs."""

    def __init__(self, logger: RcutilsLogger) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; ROS takes one severity a line of code."""
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        else:
            self._logger.warning(text)


def main(arguments: list[str] | None = None) -> int:
    """Run the node until it is told to end, and return the exit code: 128 + signal, or 70 for a defect."""
    ending = Ending()
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    node = ClassifierNode()
    log = RosLog(node.get_logger())
    logging.getLogger("flss_runtime").addHandler(log)
    try:
        if node.get_parameter("autostart").value is True:
            node.start()
        code = _spin_until(node, ending)
        node.finish()
    finally:
        logging.getLogger("flss_runtime").removeHandler(log)
        node.destroy_node()
        node.context.try_shutdown()
    _leave_what_hangs(code)
    return code


def _leave_what_hangs(code: int) -> None:
    """End at once where an engine did not come back: its thread would abort the process while Python ends."""
    if any(thread.name.startswith("flss-stream") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _spin_until(node: ClassifierNode, ending: Ending) -> int:
    """Run the node's callbacks until the end, and return its exit code.

    In a thread of their own, for ROS's waiting does not let Python see a signal.
    """
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    enough: Future = Future()

    def spin() -> None:
        try:
            executor.spin_until_future_complete(enough)
        except Exception:
            node.get_logger().fatal(traceback.format_exc())
            ending.say(_DEFECT)

    thread = threading.Thread(target=spin, name="flss-ros")
    thread.start()
    code = ending.wait()
    enough.set_result(None)
    thread.join()
    executor.remove_node(node)
    executor.shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
