"""The stack of a thread, as code objects and offsets."""

from __future__ import annotations

from types import CodeType, FrameType

from loopguard.evidence import RawFrame

DEEPEST = 3000
INNERMOST, OUTERMOST = 192, 64


def depth_of(frame: FrameType | None) -> int:
    """How many frames there are from this one outwards."""
    depth = 0
    while frame is not None:
        depth += 1
        frame = frame.f_back
    return depth


def frame_at(frame: FrameType | None, place: int) -> FrameType | None:
    """The frame so many places outwards of this one."""
    for _ in range(place):
        frame = None if frame is None else frame.f_back
    return frame


def frames_of(frame: FrameType | None) -> list[FrameType]:
    """All frames from this one outwards. Not to be kept: they hold the user's locals."""
    frames: list[FrameType] = []
    while frame is not None and len(frames) < DEEPEST:
        frames.append(frame)
        frame = frame.f_back
    return frames


def walk(
    frame: FrameType | None, outside: CodeType | None
) -> tuple[list[RawFrame], FrameType | None]:
    """All frames, innermost first, and on the way the innermost frame that runs the code `outside`."""
    stack: list[RawFrame] = []
    found: FrameType | None = None
    while frame is not None and len(stack) < DEEPEST:
        code = frame.f_code
        stack.append(RawFrame(code, frame.f_lasti, _module_name(frame)))
        if found is None and code is outside:
            found = frame
        frame = frame.f_back
    return stack, found


def bounded(stack: list[RawFrame]) -> tuple[RawFrame, ...]:
    """The stack, or of a very deep one its two ends: the culprit is near one, the entry at the other."""
    if len(stack) <= INNERMOST + OUTERMOST:
        return tuple(stack)
    return (*stack[:INNERMOST], *stack[-OUTERMOST:])


def _module_name(frame: FrameType) -> str | None:
    # dict.get itself, since the globals of exec'ed code may be a subclass with a get of its own.
    name = dict.get(frame.f_globals, "__name__")
    return name if type(name) is str else None
