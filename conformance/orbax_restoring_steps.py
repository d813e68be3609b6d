"""Cases of the names of steps, of finding them, and of waiting for new ones."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.orbax_restoring_worlds import World, case

NAMES = (
    "7",
    "08",
    "12",
    "0003",
    "ckpt_7",
    "ckpt_0003",
    "ckpt__9",
    "metadata",
    "5.orbax-checkpoint-tmp",
    "ckpt",
    "x_y_4",
)
FORMATS: tuple[dict[str, Any], ...] = (
    {},
    {"step_prefix": "ckpt"},
    {"step_prefix": "ckpt_"},
    {"step_format_fixed_length": 4},
    {"step_prefix": "ckpt", "step_format_fixed_length": 4},
)
counter = itertools.count()


def root(d: Path, names: tuple[str, ...] = NAMES) -> Path:
    """A directory of steps, new for each call."""
    made = d.parent / f"steps-{next(counter)}"
    for name in names:
        add(made, name)
    return made


def add(made: Path, name: str) -> None:
    (made / name).mkdir(parents=True)
    (made / name / "file").write_text("x")


@case("plain")
def names_of_steps(w: World, d: Path) -> Any:
    at = root(d)
    found: list[Any] = []
    for options in FORMATS:
        names = w.steps.standard_name_format(**options)
        steps = sorted((each.step, each.path.name) for each in names.find_all(at))
        latest = w.steps.latest_step_metadata(at, names)
        one = w.steps.maybe_find_step_metadata(at, names, step=7)
        found.append((str(names), names.build_name(3), names.build_name(12345), steps))
        found.append((latest and latest.step, one and one.path.name))
    return found


@case("plain")
def several_formats_at_once(w: World, d: Path) -> Any:
    at = root(d)
    formats = [w.steps.standard_name_format(**options) for options in FORMATS[:2]]
    names = w.steps.composite_name_format(formats[1], formats)
    found = sorted((each.step, each.path.name) for each in names.find_all(at))
    return [names.build_name(3), found, [names.find_step(at, step).path.name for step in (7, 12)], str(names)]


@case("plain", ValueError)
def a_format_that_is_written_must_be_read(w: World, d: Path) -> Any:
    formats = [w.steps.standard_name_format(**options) for options in FORMATS]
    return w.steps.composite_name_format(formats[0], formats[1:])


@case("plain", ValueError)
def a_step_that_is_not_there(w: World, d: Path) -> Any:
    return w.steps.standard_name_format().find_step(root(d), 99)


@case("plain")
def steps_of_a_directory_that_is_not_there(w: World, d: Path) -> Any:
    names = w.steps.standard_name_format()
    return [list(names.find_all(d / "none")), w.steps.latest_step_metadata(d / "none", names)]


@case("plain")
def the_times_of_a_step(w: World, d: Path) -> Any:
    at = root(d)
    shutil.copytree(d, at / "44")
    os.utime(at / "7", (1.5e9, 1.5e9))
    found = w.steps.standard_name_format().find_step(at, 44)
    other = w.steps.standard_name_format().find_step(at, 7)
    return [
        found.init_timestamp_nsecs,
        found.commit_timestamp_nsecs,
        str(found.commit_timestamp),
        other.commit_timestamp_nsecs,
        str(other.commit_timestamp),
    ]


@case("plain")
def where_a_step_is(w: World, d: Path) -> Any:
    at = root(d)
    names = w.steps.standard_name_format()
    paths = [
        w.steps.find_step_path(at, names, step=7),
        w.steps.find_step_path(at, names, step=5, include_uncommitted=True),
        w.steps.build_step_path(at, names, 6),
        w.steps.get_save_directory(3, at, "state", step_prefix="ckpt"),
        w.steps.get_save_directory(3, at, override_directory=at / "elsewhere"),
    ]
    return [str(path.relative_to(at)) for path in paths]


@case("plain")
def steps_of_any_name(w: World, d: Path) -> Any:
    at = root(d)
    return [
        sorted(w.steps.checkpoint_steps(at)),
        sorted(path.name for path in w.steps.checkpoint_steps_paths(at)),
        w.steps.any_checkpoint_step(root(d, ("metadata", "3"))),
        w.steps.tmp_checkpoints(at),
        [w.steps.is_checkpoint_finalized(at / name) for name in NAMES],
        [w.steps.step_from_checkpoint_name(name) for name in ("7", "ckpt_0003", "5.orbax-checkpoint-tmp", "a_b_12")],
        w.steps.step_metadata_of_checkpoint_path(at / "12", w.steps.standard_name_format()).step,
    ]


@case("plain", ValueError)
def a_name_without_a_number(w: World, d: Path) -> Any:
    return w.steps.step_from_checkpoint_name("ckpt")


@case("plain", ValueError)
def a_path_that_is_no_step(w: World, d: Path) -> Any:
    return w.steps.step_metadata_of_checkpoint_path(root(d) / "ckpt", w.steps.standard_name_format())


def collected(w: World, at: Path, arriving: list[str], **options: Any) -> Any:
    """The steps that come, and the snapshots there are meanwhile; two names of ``arriving`` arrive after each step."""
    found = []
    for step in w.utils.checkpoints_iterator(at, timeout=0, seconds_to_sleep=0, **options):
        found.append((step, sorted(path.name for path in (at / "_SNAPSHOTS").iterdir())))
        for name in arriving[:2]:
            add(at, name)
        del arriving[:2]
    return [found, sorted(path.name for path in (at / "_SNAPSHOTS").iterdir())]


@case("plain")
def new_steps_as_they_come(w: World, d: Path) -> Any:
    return collected(w, root(d, ("1", "3", "2")), ["5", "9", "4", "12", "11", "10"])


@case("plain")
def new_steps_with_a_prefix(w: World, d: Path) -> Any:
    return collected(w, root(d, ("ckpt_0001",)), ["ckpt_0004"], step_prefix="ckpt", step_format_fixed_length=4)


@case("plain")
def snapshots_that_were_left_are_removed(w: World, d: Path) -> Any:
    return collected(w, root(d, ("1", "_SNAPSHOTS/8")), [])


def counted(answers: list[bool]) -> Callable[[], bool]:
    return lambda: answers.pop(0) if answers else True


@case("plain")
def waiting_until_a_function_says_that_no_more_will_come(w: World, d: Path) -> Any:
    return collected(w, root(d, ("1",)), [], timeout_fn=counted([False, False, True, True]))


@case("plain")
def waiting_for_one_step(w: World, d: Path) -> Any:
    at = root(d, ("1", "6"))
    found = []
    for until in (None, 3, 6, 7):
        with w.utils.wait_for_new_checkpoint(at, until_step=until, timeout=0, seconds_to_sleep=0) as step:
            found.append((step, sorted(path.name for path in at.glob("_SNAPSHOTS/*"))))
    return found


@case("plain")
def waiting_where_nothing_is(w: World, d: Path) -> Any:
    with w.utils.wait_for_new_checkpoint(d.parent / "none", timeout=0, seconds_to_sleep=0) as step:
        return step
