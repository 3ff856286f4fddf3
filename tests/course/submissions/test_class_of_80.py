"""A class of eighty, through the command line: every verdict is as expected, in ten minutes.

Not among the unit tests: `make test-class`.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from made_up_class import answers, class_of_12, class_of_80, complaints, hand_in

from rlhf_toy.course.exercises import all_exercises

SECONDS = 600  # on two free cores; others may use them as well, so the processor's time counts
COMMAND = [sys.executable, "-m", "rlhf_toy", "grade"]
# The same on a system that does not allow namespaces: nothing else keeps processes apart.
WITHOUT_NAMESPACES = """
import sys
from rlhf_toy.course.commands.command_line import main
from rlhf_toy.course.submissions import sandbox
sandbox.isolate = lambda folder, hidden: [sandbox.NETWORK, sandbox.PROCESSES, sandbox.FILES]
sys.exit(main(["grade", *sys.argv[1:]]))
"""


def put(students, folder):
    folder.mkdir()
    hand_in(students, folder)
    return students


def processes(output):
    """The processes of a grader that still live, by what they write to."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if str(output).encode() in place.read_bytes():
                found.append(place.parent.name)
    return found


def test_the_class_has_every_exercise_and_every_mistake():
    students = class_of_80()
    assert len(students) == len({student.name for student in students}) == 80
    seen = {name: set() for name in all_exercises()}
    for student in students:
        for name, (status, mistake) in student.expected.items():
            seen[name].add(mistake or status)
    for name, exercise in all_exercises().items():
        assert len(answers(exercise.notebook)["RIGHT"][name]) >= 3
        assert {"right", *(known.name for known in exercise.mistakes)} <= seen[name]


def test_a_class_of_eighty(tmp_path):
    folder, output = tmp_path / "Übung 8", tmp_path / "graded"
    students = put(class_of_80(), folder)
    start = time.monotonic()
    done = subprocess.run(
        [*COMMAND, str(folder), "--output", str(output)], capture_output=True, text=True
    )
    wall, processor = time.monotonic() - start, sum(os.times()[2:4])
    assert done.returncode == 0, done.stderr
    found = complaints(students, output)
    assert not found, "\n".join(found)
    print(f"\n{wall:.0f} s on the clock, {processor:.0f} s of the processor")
    assert processor < 2 * SECONDS


def test_a_killed_run_leaves_no_process_and_resumes(tmp_path):
    folder, output = tmp_path / "Übung 8", tmp_path / "graded"
    students = put(class_of_12(), folder)
    command = [*COMMAND, str(folder), "--output", str(output)]

    def finished():
        return {path.name: path.stat().st_mtime_ns for path in output.glob("finished/*.json")}

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(finished()) < 3 and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    early = finished()
    assert 3 <= len(early) < 12 and not (output / "index.html").exists()
    deadline = time.monotonic() + 10
    while processes(output) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes(output)

    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert early.items() <= finished().items() and len(finished()) == 12
    assert complaints(students, output) == []


def test_an_interrupt_ends_a_run_and_its_processes(tmp_path):
    folder, output = tmp_path / "Übung 8", tmp_path / "graded"
    put(class_of_12(), folder)
    command = [*COMMAND, str(folder), "--output", str(output)]
    run = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may ignore it
    )
    while not list(output.glob("finished/*.json")) and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate()
    assert run.returncode == 130 and "Traceback" not in said
    assert "run the same command again" in said
    deadline = time.monotonic() + 10
    while processes(output) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes(output)


def test_a_class_on_a_system_without_namespaces(tmp_path):
    folder, output = tmp_path / "Übung 8", tmp_path / "graded"
    students = put(class_of_12(), folder)
    command = [sys.executable, "-c", WITHOUT_NAMESPACES, str(folder), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert complaints(students, output) == []
    assert "does not allow full protection: " in (output / "index.html").read_text()
