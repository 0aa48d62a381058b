"""An offline renderer for dressed bodies in rooms: moderngl on EGL, which runs on a CPU through Mesa's llvmpipe.

Everything is drawn straight in the optical frame (x right, y down, z forward). The projection maps pixel rows downwards
to OpenGL's rows upwards, so that the framebuffer's first row is the image's first row and nothing needs flipping.
Pixels are continuous: the image reaches from 0 to ``width``, as in :class:`~hmr_prob_ros.camera.Camera`.
"""

from __future__ import annotations

__all__ = ["BodyMesh", "Frame", "Light", "Outfit", "RenderError", "Renderer", "Solid", "box", "keypoint_reach", "quad"]

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hmr_prob_ros.body import Body
from hmr_prob_ros.camera import Camera

from .outfits import Colour, Outfit, landmarks, paint_uniforms
from .shaders import (
    DEPTH_FRAGMENT,
    GEOMETRY_FRAGMENT,
    PERSON_FRAGMENT,
    PERSON_VERTEX,
    SOLID_FRAGMENT,
    SOLID_VERTEX,
)

NEAR, FAR = 0.05, 60.0
SHADOW_SIZE = 768
SHADOW_REACH = 3.5
"""Half the side in metres of the square round the people that casts shadows."""

PERSON_ID = 1.0
"""Identity of the first person in the geometry buffer; solids have negative identities, nothing has 0."""


class RenderError(RuntimeError):
    """The renderer cannot start or draw; the text names the mend."""


@dataclass(frozen=True)
class BodyMesh:
    """A posed body: ``vertices`` (V, 3) in metres in the optical frame, and what it wears."""

    vertices: np.ndarray
    outfit: Outfit = field(default_factory=Outfit)


@dataclass(frozen=True)
class Solid:
    """A piece of room or furniture in world coordinates.

    Args:
        triangles: (T, 8) rows of position (3), normal (3) and texture coordinates in metres (2); three rows a triangle.
        colour, colour2: linear RGB.
        style: 0 plain, 1 noise, 2 tiles, 3 planks, 4 chequered, 5 picture, 6 gradient, 7 picture without light.
        scale: metres of one repetition of the texture.
        picture: (H, W, 3) uint8 RGB for the styles 5 and 7.
        occluder: counts as an object that may hide a person; walls and floors do not.
    """

    triangles: np.ndarray
    colour: Colour = (0.5, 0.5, 0.5)
    colour2: Colour = (0.3, 0.3, 0.3)
    style: int = 0
    scale: float = 1.0
    gloss: float = 0.0
    picture: np.ndarray | None = None
    occluder: bool = False
    seed: float = 0.0


@dataclass(frozen=True)
class Light:
    """One sun-like light and the light from everywhere; ``direction`` points towards the light, world frame (y up)."""

    direction: tuple[float, float, float] = (0.4, 1.0, 0.5)
    colour: Colour = (0.75, 0.72, 0.68)
    ambient: Colour = (0.42, 0.44, 0.48)
    shadows: bool = True


@dataclass(frozen=True)
class Frame:
    """What a renderer gives.

    Args:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 metres along the optical axis, 0 where nothing was drawn.
        identity: (H, W) int32; ``p + 1`` for person p, negative for an occluder, 0 for background.
    """

    image: np.ndarray
    depth: np.ndarray
    identity: np.ndarray


def quad(origin: Sequence[float], u: Sequence[float], v: Sequence[float]) -> np.ndarray:
    """Two triangles (6, 8) of the parallelogram ``origin + s u + t v``, s and t in [0, 1]; textured in metres."""
    o, a, b = (np.asarray(x, dtype=np.float64) for x in (origin, u, v))
    normal = np.cross(a, b)
    normal /= np.linalg.norm(normal)
    la, lb = np.linalg.norm(a), np.linalg.norm(b)
    corners = [(0, 0), (1, 0), (1, 1), (0, 0), (1, 1), (0, 1)]
    return np.array([[*(o + s * a + t * b), *normal, s * la, t * lb] for s, t in corners], dtype=np.float32)


def box(centre: Sequence[float], size: Sequence[float], yaw: float = 0.0) -> np.ndarray:
    """Triangles (36, 8) of a box with edges ``size`` about ``centre``, turned by ``yaw`` radians about y."""
    half = np.asarray(size, dtype=np.float64) / 2
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    faces = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            n, u, v = np.zeros(3), np.zeros(3), np.zeros(3)
            n[axis] = sign * half[axis]
            u[(axis + 1) % 3], v[(axis + 2) % 3] = 2 * half[(axis + 1) % 3], sign * 2 * half[(axis + 2) % 3]
            faces.append(quad(np.asarray(centre) + turn @ (n - u / 2 - v / 2), turn @ u, turn @ v))
    return np.concatenate(faces)


def keypoint_reach(body: Body) -> np.ndarray:
    """(23,) distance in metres from each keypoint to the farthest vertex that defines it, at rest.

    A hip or knee is regressed from a ring of vertices and lies under the skin; without this allowance its own skin
    would count as hiding it.
    """
    regressor = np.abs(np.asarray(body.keypoint_regressor))
    template = np.asarray(body.v_template)
    points = np.asarray(body.keypoint_regressor) @ template
    far = np.linalg.norm(template[None] - points[:, None], axis=-1)
    return np.where(regressor > 0.25 * regressor.max(axis=1, keepdims=True), far, 0.0).max(axis=1)


def _column_major(matrix: np.ndarray) -> bytes:
    return np.ascontiguousarray(matrix.T, dtype=np.float32).tobytes()


class Renderer:
    """Draws people, furniture and rooms at one image size; use it as a context manager or call :meth:`close`.

    Args:
        width, height: image size in pixels.
        body: the body whose rest pose carries the paint (the shipped default when left out).
        samples: samples per pixel.

    Raises:
        RenderError: moderngl or EGL is missing.
    """

    def __init__(self, width: int, height: int, body: Body | None = None, samples: int = 4) -> None:
        try:
            import moderngl
        except ImportError as error:
            raise RenderError("rendering needs moderngl: pip install 'hmr_prob_ros[train]'") from error
        try:
            self._gl = moderngl.create_context(standalone=True, backend="egl")
        except Exception as error:  # moderngl raises bare Exceptions
            raise RenderError(
                f"no EGL context ({error}): on Debian or Ubuntu apt install libegl1 libegl-mesa0 libgl1-mesa-dri"
            ) from error
        self.width, self.height = width, height
        self.body = body if body is not None else Body.load()
        gl, size = self._gl, (width, height)
        samples = min(samples, gl.max_samples)
        self._multi = gl.framebuffer(
            [gl.renderbuffer(size, 4, samples=samples)], gl.depth_renderbuffer(size, samples=samples)
        )
        self._single = gl.framebuffer([gl.renderbuffer(size, 4)])
        self._geometry = gl.framebuffer([gl.renderbuffer(size, 2, dtype="f4")], gl.depth_renderbuffer(size))
        self._shadow_texture = gl.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self._shadow_texture.compare_func = "<="
        self._shadow_texture.repeat_x = self._shadow_texture.repeat_y = False
        self._shadow = gl.framebuffer(depth_attachment=self._shadow_texture)
        self._programs = {
            (kind, stage): gl.program(vertex_shader=vertex, fragment_shader=fragment)
            for kind, vertex, painted in (
                ("person", PERSON_VERTEX, PERSON_FRAGMENT),
                ("solid", SOLID_VERTEX, SOLID_FRAGMENT),
            )
            for stage, fragment in (("colour", painted), ("geometry", GEOMETRY_FRAGMENT), ("shadow", DEPTH_FRAGMENT))
        }
        faces = np.asarray(self.body.faces, dtype=np.int32)
        self._faces = faces
        self._index = gl.buffer(faces.tobytes())
        self._rest = gl.buffer(np.ascontiguousarray(self.body.v_template, dtype=np.float32).tobytes())
        order = np.argsort(faces.T.ravel(), kind="stable")
        self._corner_face = np.tile(np.arange(len(faces)), 3)[order]
        self._corner_start = np.searchsorted(faces.T.ravel()[order], np.arange(len(self.body.v_template)))
        self._marks = landmarks(self.body)
        self.reach = keypoint_reach(self.body)
        self._dummy = gl.texture((1, 1), 3, b"\x80\x80\x80")
        gl.enable(moderngl.DEPTH_TEST)
        # Rows run downwards, so what is wound against the clock in the mesh runs with it on the screen.
        gl.front_face = "cw"
        self._cull: Any = moderngl.CULL_FACE

    def __enter__(self) -> Renderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the context back."""
        self._gl.release()

    def normals(self, vertices: np.ndarray) -> np.ndarray:
        """Unit normals (V, 3) of a mesh with the body's faces, weighted by area."""
        a, b, c = (vertices[self._faces[:, k]] for k in range(3))
        face = np.cross(b - a, c - a)
        normal = np.add.reduceat(
            face[self._corner_face], np.minimum(self._corner_start, len(self._corner_face) - 1), axis=0
        )
        return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)

    def render(
        self,
        camera: Camera,
        people: Sequence[BodyMesh] = (),
        solids: Sequence[Solid] = (),
        view: tuple[np.ndarray, np.ndarray] | None = None,
        light: Light | None = None,
        background: Colour = (0.5, 0.5, 0.5),
    ) -> Frame:
        """Draw one picture.

        Args:
            camera: intrinsics of the renderer's size, without distortion.
            people: posed bodies in the optical frame.
            solids: room and furniture in the world.
            view: rotation (3, 3) and translation (3,) from the world (y up) to the optical frame.
            light: the light, in the world.
            background: linear RGB where nothing is drawn.

        Raises:
            RenderError: the camera has another size, or a distortion.
        """
        if (camera.width, camera.height) != (self.width, self.height):
            raise RenderError(
                f"the camera is {camera.width}x{camera.height}, the renderer {self.width}x{self.height}: "
                "use camera.scaled()"
            )
        if any(camera.distortion):
            raise RenderError("the renderer draws pinhole images: give a camera without distortion coefficients")
        light = light or Light()
        rotation, translation = view if view is not None else (np.diag([1.0, -1.0, -1.0]), np.zeros(3))
        world = np.eye(4)
        world[:3, :3], world[:3, 3] = rotation, translation
        towards = rotation @ (np.asarray(light.direction) / np.linalg.norm(light.direction))
        shadow = _shadow_matrix(people, towards) if light.shadows and people else None
        shared: dict[str, Any] = {
            "projection": _column_major(_projection(camera)),
            "view": _column_major(world),
            "shadow_matrix": _column_major(shadow if shadow is not None else np.eye(4)),
            "light": tuple(towards),
            "up": tuple(rotation[:, 1]),
            "light_colour": light.colour,
            "ambient": light.ambient,
            "has_shadow": int(shadow is not None),
            "shadow_map": 1,
            "picture": 0,
        }
        kept: list[Any] = []
        draws = [self._person(mesh, PERSON_ID + i, kept) for i, mesh in enumerate(people)]
        draws += [self._solid(solid, -1.0 - i if solid.occluder else 0.0, kept) for i, solid in enumerate(solids)]
        try:
            if shadow is not None:
                self._pass(
                    self._shadow,
                    "shadow",
                    [d for d in draws if d[3] != 0],
                    {**shared, "projection": shared["shadow_matrix"]},
                )
            self._shadow_texture.use(1)
            self._multi.use()
            self._multi.clear(*(float(c) ** (1 / 2.2) for c in background), 1.0)
            self._pass(self._multi, "colour", draws, shared)
            self._gl.copy_framebuffer(self._single, self._multi)
            self._geometry.use()
            self._geometry.clear(0.0, 0.0)
            self._pass(self._geometry, "geometry", draws, shared)
            rgb = np.frombuffer(self._single.read(components=3, alignment=1), np.uint8)
            geometry = np.frombuffer(self._geometry.read(components=2, dtype="f4", alignment=1), np.float32)
        finally:
            for thing in kept:
                thing.release()
        geometry = geometry.reshape(self.height, self.width, 2)
        return Frame(
            rgb.reshape(self.height, self.width, 3).copy(),
            geometry[..., 0].copy(),
            np.rint(geometry[..., 1]).astype(np.int32),
        )

    def _pass(
        self, target: Any, stage: str, draws: list[tuple[str, Any, dict[str, Any], float]], shared: dict[str, Any]
    ) -> None:
        target.use()
        if stage == "shadow":
            target.clear(depth=1.0)
        for kind, content, uniforms, identity in draws:
            program = self._programs[kind, stage]
            for name, value in {**shared, **uniforms, "object_id": identity}.items():
                if name in program:  # the compiler drops what a stage does not use
                    if isinstance(value, bytes):
                        program[name].write(value)
                    else:
                        program[name].value = value
            buffers, index, texture = content
            names = [(b, *_present(program, layout)) for b, layout in buffers]
            array = self._gl.vertex_array(program, names, index_buffer=index)
            if stage == "colour":
                (texture or self._dummy).use(0)
                if kind == "person":  # painting the far side, too, would take half as long again
                    self._gl.enable(self._cull)
            array.render()
            self._gl.disable(self._cull)
            array.release()

    def _person(self, mesh: BodyMesh, identity: float, kept: list[Any]) -> tuple[str, Any, dict[str, Any], float]:
        vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float32)
        if vertices.shape != self.body.v_template.shape:
            raise RenderError(f"the mesh has shape {vertices.shape}, the renderer's body {self.body.v_template.shape}")
        posed = np.concatenate([vertices, self.normals(vertices).astype(np.float32)], axis=1)
        buffer = self._gl.buffer(np.ascontiguousarray(posed, dtype=np.float32).tobytes())
        kept.append(buffer)
        buffers = [(buffer, (("in_position", 3), ("in_normal", 3))), (self._rest, (("in_rest", 3),))]
        return "person", (buffers, self._index, None), paint_uniforms(mesh.outfit, self._marks), identity

    def _solid(self, solid: Solid, identity: float, kept: list[Any]) -> tuple[str, Any, dict[str, Any], float]:
        buffer = self._gl.buffer(np.ascontiguousarray(solid.triangles, dtype=np.float32).tobytes())
        kept.append(buffer)
        texture = None
        if solid.picture is not None:
            height, width = solid.picture.shape[:2]
            # Textures start at the bottom row.
            texture = self._gl.texture(
                (width, height), 3, np.ascontiguousarray(solid.picture[::-1]).tobytes(), alignment=1
            )
            texture.build_mipmaps()
            kept.append(texture)
        uniforms = {
            "colour_a": solid.colour,
            "colour_b": solid.colour2,
            "style": solid.style,
            "scale": solid.scale,
            "gloss": solid.gloss,
            "seed": solid.seed,
        }
        layout = (("in_position", 3), ("in_normal", 3), ("in_uv", 2))
        return "solid", ([(buffer, layout)], None, texture), uniforms, identity


def _present(program: Any, layout: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """moderngl's layout of a buffer, padding over the attributes that a program does not have."""
    parts = [f"{n}f" if name in program else f"{4 * n}x" for name, n in layout]
    return (" ".join(parts), *(name for name, _ in layout if name in program))


def _projection(camera: Camera) -> np.ndarray:
    """Optical frame to clip space; rows run downwards in both, and the depth grows away from the camera."""
    w, h = camera.width, camera.height
    return np.array(
        [
            [2 * camera.fx / w, 0, 2 * camera.cx / w - 1, 0],
            [0, 2 * camera.fy / h, 2 * camera.cy / h - 1, 0],
            [0, 0, (FAR + NEAR) / (FAR - NEAR), -2 * FAR * NEAR / (FAR - NEAR)],
            [0, 0, 1, 0],
        ]
    )


def _shadow_matrix(people: Sequence[BodyMesh], towards: np.ndarray) -> np.ndarray:
    """Orthographic view (4, 4) from the light on the people, optical frame to clip space."""
    centre = np.mean([mesh.vertices.mean(axis=0) for mesh in people], axis=0)
    forward = -towards
    side = np.cross(forward, [1.0, 0.0, 0.0] if abs(forward[0]) < 0.9 else [0.0, 0.0, 1.0])
    side /= np.linalg.norm(side)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([side, np.cross(forward, side), forward]) / SHADOW_REACH
    matrix[2, :3] /= 2.0
    matrix[:3, 3] = -matrix[:3, :3] @ centre
    return matrix
