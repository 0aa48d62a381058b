"""Definitions of message types that are not installed, as the node that publishes them tells them (REP-2016)."""

from __future__ import annotations

import time
from typing import Any

from rclpy.node import Node
from rclpy.task import Future
from rclpy.topic_endpoint_info import TopicEndpointInfo

__all__ = ["DescriptionRequest", "definition_of"]

_PATIENCE = 20.0  # seconds; nodes before Iron do not answer
_AGAIN = 0.5  # an answer that comes before discovery went both ways is lost
_BASIC = {"BOOLEAN": "bool", "FLOAT": "float32", "DOUBLE": "float64"}
_NO_NAME = "_NODE_NAME_UNKNOWN_"  # of a publisher whose participant has not told its nodes yet
_FILLER = "structure_needs_at_least_one_member"  # C's empty structs are none
_SEPARATOR = "=" * 80


def _type(kind: Any, names: dict[int, str]) -> str:
    """One ``type_description_interfaces/FieldType`` in the words of a ``.msg`` file."""
    name, suffix = names[kind.type_id], ""
    for ending, form in (("_BOUNDED_SEQUENCE", "[<={}]"), ("_UNBOUNDED_SEQUENCE", "[]"), ("_ARRAY", "[{}]")):
        if name.endswith(ending):
            name, suffix = name.removesuffix(ending), form.format(kind.capacity)
            break
    if name == "NESTED_TYPE":
        package, _, short = kind.nested_type_name.split("/")
        return f"{package}/{short}{suffix}"
    if name.startswith("BOUNDED_"):
        return f"{name.removeprefix('BOUNDED_').lower()}<={kind.string_capacity}{suffix}"
    return f"{_BASIC.get(name, name.lower())}{suffix}"


def definition_of(description: Any) -> str:
    """``type_description_interfaces/TypeDescription`` -> the text of the type and all inside it (``ros2msg``)."""
    from type_description_interfaces.msg import FieldType

    names = {
        getattr(FieldType, n): n.removeprefix("FIELD_TYPE_")
        for n in dir(type(FieldType))
        if n.startswith("FIELD_TYPE_")
    }
    parts: list[str] = []
    for one in (description.type_description, *description.referenced_type_descriptions):
        package, _, short = one.type_name.split("/")
        head = f"{_SEPARATOR}\nMSG: {package}/{short}\n" if parts else ""
        lines = [f"{_type(f.type, names)} {f.name}\n" for f in one.fields if f.name != _FILLER]
        parts.append(head + "".join(lines))
    return "".join(parts)


class DescriptionRequest:
    """A question to the node that publishes a topic, answered while that of the recorder spins.

    Args:
        node: asks.
        topic: its name.
        kind: its type, as ``diagnostic_msgs/msg/DiagnosticArray``.
    """

    def __init__(self, node: Node, topic: str, kind: str) -> None:
        self._node = node
        self._topic = topic
        self._kind = kind
        self._publisher: TopicEndpointInfo | None = None
        self._end = time.monotonic() + _PATIENCE
        self._sent = 0.0
        self._futures: list[Future] = []  # the first answer counts: on a busy machine it comes after the next question
        self._client: Any = None
        self._service: Any = None
        try:
            from type_description_interfaces.srv import GetTypeDescription
        except ImportError:  # before Iron
            self._end = 0.0
        else:
            self._service = GetTypeDescription

    def _meet(self) -> None:
        """A client of the first node that publishes the topic and is known by name."""
        for publisher in self._node.get_publishers_info_by_topic(self._topic):
            if publisher.topic_type == self._kind and publisher.node_name != _NO_NAME:
                name = f"{publisher.node_namespace.rstrip('/')}/{publisher.node_name}/get_type_description"
                self._publisher = publisher
                self._client = self._node.create_client(self._service, name)
                return

    def answer(self) -> str | None:
        """The definition, "" where none is to be had, None while it may still come."""
        now = time.monotonic()
        if self._publisher is None and now < self._end:
            self._meet()
        if (
            self._publisher is not None
            and self._client is not None
            and now - self._sent > _AGAIN
            and self._client.service_is_ready()
        ):
            self._sent = now
            request = self._service.Request()
            request.type_name = self._kind
            request.type_hash = str(self._publisher.topic_type_hash)
            request.include_type_sources = False
            self._futures.append(self._client.call_async(request))
        for future in self._futures:
            if not future.done():
                continue
            response: Any = future.result()
            self._close()
            return definition_of(response.type_description) if response.successful else ""
        if now < self._end:
            return None
        self._close()
        return ""

    def _close(self) -> None:
        if self._client is not None:
            self._node.destroy_client(self._client)
            self._client = None
            self._end = 0.0
