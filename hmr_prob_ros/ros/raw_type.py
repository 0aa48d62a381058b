"""Message types that are not installed, for topics whose messages are passed on as bytes and never looked into.

rclpy wants a compiled type of every topic. The middleware asks it for little when messages go through serialised:
for the type's name and hash. Both are put into a copy of the compiled ``std_msgs/String``, whose other functions are
never called then. This works with ``rmw_fastrtps_cpp``; what is copied is checked before it is used.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any

from rclpy.utilities import get_rmw_implementation_identifier
from std_msgs.msg import String

from .conversions import load_type_support

__all__ = ["clear_error", "raw_message_class"]

_SYMBOL = "rosidl_typesupport_fastrtps_c__get_message_type_support_handle__std_msgs__msg__String"
_LIBRARY = "libstd_msgs__rosidl_typesupport_fastrtps_c.so"
_POINTER = ctypes.c_void_p


class _Callbacks(ctypes.Structure):
    """The first fields of ``message_type_support_callbacks_t``; the others are functions."""

    _fields_ = [("namespace", ctypes.c_char_p), ("name", ctypes.c_char_p), ("functions", _POINTER * 5)]


class _Support(ctypes.Structure):
    """``rosidl_message_type_support_t`` since Iron."""

    _fields_ = [
        ("identifier", ctypes.c_char_p),
        ("data", ctypes.POINTER(_Callbacks)),
        ("find", _POINTER),
        ("get_hash", _POINTER),
        ("get_description", _POINTER),
        ("get_sources", _POINTER),
    ]


class _Hash(ctypes.Structure):
    """``rosidl_type_hash_t``."""

    _fields_ = [("version", ctypes.c_uint8), ("value", ctypes.c_uint8 * 32)]


_GET_HASH = ctypes.CFUNCTYPE(_POINTER, _POINTER)


@lru_cache(maxsize=1)
def _template() -> _Support:
    """The type support of ``std_msgs/String``.

    Raises:
        ImportError: another middleware, or a layout that is not the expected one.
    """
    if (name := get_rmw_implementation_identifier()) != "rmw_fastrtps_cpp":
        raise ImportError(f"{name} cannot pass on what is not installed, rmw_fastrtps_cpp can")
    load_type_support(String)
    try:
        function = getattr(ctypes.CDLL(_LIBRARY), _SYMBOL)
    except (OSError, AttributeError) as error:
        raise ImportError(f"the type support of std_msgs is not where it is expected: {error}") from error
    function.restype = ctypes.POINTER(_Support)
    found: _Support = function().contents
    names = (found.identifier, found.data.contents.namespace, found.data.contents.name)
    if names[0] != b"rosidl_typesupport_fastrtps_c" or b"std_msgs" not in (names[1] or b"") or names[2] != b"String":
        raise ImportError(f"the type support of std_msgs has another layout than expected: {names}")
    return found


def _hash(text: str) -> _Hash:
    """``RIHS01_<64 hex digits>`` as the middleware has it; an unknown one is version 0."""
    prefix, _, digits = text.partition("_")
    if prefix != "RIHS01" or len(digits) != 64:
        return _Hash()
    return _Hash(1, (ctypes.c_uint8 * 32)(*bytes.fromhex(digits)))


@cache
def raw_message_class(name: str, type_hash: str = "") -> type:
    """A class of ``tf2_msgs/msg/TFMessage`` that publishers and raw subscriptions take, without any field.

    Args:
        name: the type's full name.
        type_hash: its ``RIHS01_...``, announced to other nodes.

    Raises:
        ImportError: the middleware here cannot do this.
    """
    template = _template()
    package, folder, short = name.split("/")
    callbacks = _Callbacks.from_buffer_copy(template.data.contents)
    before, _, behind = (callbacks.namespace or b"").partition(b"std_msgs")
    callbacks.namespace = before + package.encode() + behind.replace(b"msg", folder.encode())
    callbacks.name = short.encode()
    support = _Support.from_buffer_copy(template)
    support.data = ctypes.pointer(callbacks)
    digest = _hash(type_hash)
    get_hash = _GET_HASH(lambda _: ctypes.addressof(digest))
    support.get_hash = ctypes.cast(get_hash, _POINTER)
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype, new_capsule.argtypes = ctypes.py_object, (_POINTER, ctypes.c_char_p, _POINTER)
    capsule = new_capsule(ctypes.addressof(support), None, None)

    like: Any = String

    class Meta(type):
        _TYPE_SUPPORT = capsule
        _CREATE_ROS_MESSAGE = like._CREATE_ROS_MESSAGE
        _CONVERT_FROM_PY = like._CONVERT_FROM_PY
        _CONVERT_TO_PY = like._CONVERT_TO_PY
        _DESTROY_ROS_MESSAGE = like._DESTROY_ROS_MESSAGE
        _alive = (support, callbacks, digest, get_hash)  # the middleware keeps pointers to them

    return Meta(short, (), {"__module__": f"{package}.{folder}._raw", "__slots__": ()})


def clear_error() -> None:
    """Forget that the middleware missed the parts of a raw type that only tools ask for; call it after each use."""
    try:
        ctypes.CDLL("librcutils.so").rcutils_reset_error()
    except (OSError, AttributeError):  # then a harmless text appears on stderr
        return
