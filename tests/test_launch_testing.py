# ruff: noqa: E402 - what needs ROS is imported after the check that ROS is there
"""The launch file with ROS' own launch_testing, for machines with ROS 2 installed.

The same is tested everywhere through plain processes in ``test_lifecycle.py`` and ``test_ros_node.py``.
"""

from __future__ import annotations

import os
import unittest
from typing import Any

import pytest

REASON = "launch_testing comes with a ROS installation (apt), not from PyPI; test_lifecycle.py checks the same"
launch_testing = pytest.importorskip("launch_testing", reason=REASON)
pytest.importorskip("launch_testing.actions", reason=REASON)
pytest.importorskip("launch_testing.asserts", reason=REASON)
pytest.importorskip("launch_testing_ros", reason=REASON)
pytest.importorskip("launch_ros", reason=REASON)
pytest.importorskip("ament_index_python", reason=REASON)

from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from ros_processes import Client, photograph

from launch import LaunchDescription

try:
    SHARE = get_package_share_directory("hmr_prob_ros")
except PackageNotFoundError:
    pytest.skip("no sourced workspace: colcon build, then source install/setup.bash", allow_module_level=True)


@pytest.mark.launch_test
def generate_test_description() -> LaunchDescription:
    """The estimator's launch file, waiting for its manager."""
    source = PythonLaunchDescriptionSource(os.path.join(SHARE, "launch", "estimator.launch.py"))
    estimator = IncludeLaunchDescription(source, launch_arguments=[("autostart", "false"), ("modes", "5")])
    return LaunchDescription([estimator, launch_testing.actions.ReadyToTest()])


class TestStates(unittest.TestCase):
    """What a manager and a camera see."""

    def setUp(self) -> None:
        self.client = Client(int(os.environ.get("ROS_DOMAIN_ID", "0")))

    def tearDown(self) -> None:
        self.client.close()

    def test_managed(self) -> None:
        assert self.client.state() == "unconfigured"
        for transition, state in (("configure", "inactive"), ("activate", "active")):
            assert self.client.change_state(transition)
            assert self.client.state() == state
        self.client.wait_for_node()
        (person,) = self.client.answer(self.client.send(photograph())).people
        assert len(person.hypotheses) == 5
        for transition, state in (("deactivate", "inactive"), ("cleanup", "unconfigured")):
            assert self.client.change_state(transition)
            assert self.client.state() == state


@launch_testing.post_shutdown_test()
class TestExit(unittest.TestCase):
    """How the processes ended."""

    def test_exit_codes(self, proc_info: Any) -> None:
        launch_testing.asserts.assertExitCodes(proc_info)
