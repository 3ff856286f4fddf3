"""Bodies of an exercise that attack the grader, crash or never end, and the verdicts on them."""

ANY = "any mistake"  # which one depends on the system

Expected = tuple[str, str]  # status, and the name of the mistake, "" or ANY

RIGHT_GAE = "RIGHT['gae'][0](rewards, values, mask, gamma, lam)"
HOSTILE: dict[str, tuple[str, Expected]] = {  # what gae does, with a right answer after it
    "loops": ("while True: pass", ("wrong", "does not end")),
    "loops in C": ("sum(range(10**12))", ("wrong", "does not end")),
    "ignores the limit": (
        "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN); sum(range(10**12))",
        ("wrong", "does not end"),
    ),
    "sleeps": ("import time; time.sleep(1000)", ("wrong", "waits")),
    "ends Python": ("import os; os._exit(0)", ("wrong", "ends the process")),
    "ends Python with a code": ("import os; os._exit(3)", ("wrong", "ends the process")),
    "raises a strange error": (
        "raise type('<b>\\n$x^$', (Exception,), {})('<script>\\ud800\\x00$x^$')",
        ("wrong", "raises an exception"),
    ),
    "calls exit": ("import sys; sys.exit()", ("wrong", "raises SystemExit")),
    "interrupts": ("raise KeyboardInterrupt", ("wrong", "raises KeyboardInterrupt")),
    "crashes": ("import ctypes; ctypes.string_at(0)", ("wrong", "crashes")),
    "recurses": (
        "import sys; sys.setrecursionlimit(10**9); f = lambda: f(); f()",
        ("wrong", ANY),
    ),
    "forks": ("import os\n    while True: os.fork()", ("wrong", "raises BlockingIOError")),
    "forks and continues": (
        "import os\n    for _ in range(999):\n        try: os.fork()\n        except OSError: pass",
        ("right", ""),
    ),
    "starts threads": (
        "import threading\n    while True: threading.Thread(target=input).start()",
        ("wrong", "raises RuntimeError"),
    ),
    "fills memory": ("x = bytearray(10**10)", ("wrong", "raises MemoryError")),
    "fills memory by torch": ("torch.ones(10**10)", ("wrong", "raises RuntimeError")),
    "fills memory slowly": (
        "x = []\n    while True: x.append(bytearray(10**7))",
        ("wrong", ANY),  # whichever limit it reaches first, that of memory or of time
    ),
    "writes a large file": (
        "f = open('x', 'w'); f.write('x' * 10**8); f.close()",
        ("wrong", "raises OSError"),
    ),
    "writes a file": (
        "open('x', 'a').write('x'); assert len(open('x').read()) == 1",
        ("wrong", "raises AssertionError"),  # in the second case: the folder is one per exercise
    ),
    "prints": ("print('x' * 10**7)", ("right", "")),
    "kills": (
        "import os\n    for pid in (os.getppid(), 1):\n"
        "        try: os.kill(pid, 9)\n        except OSError: pass",
        ("right", ""),
    ),
    "reaches out": (
        "import pathlib, socket\n"
        "    for place in ('../..', '/tmp', '/dev/shm', pathlib.Path.home()):\n"
        "        try: (pathlib.Path(place) / 'leak').write_text('x')\n"
        "        except OSError: continue\n"
        "        assert str(place) == pathlib.os.environ['HOME'], place\n"
        "    for family in (socket.AF_INET, socket.AF_UNIX):\n"
        "        try: socket.socket(family)\n"
        "        except PermissionError: continue\n"
        "        assert False, 'there are sockets'",
        ("right", ""),
    ),
    "reads the class": (
        "import sys\n"
        "    frame = sys._getframe()\n"
        "    while frame := frame.f_back:\n"
        "        for submission in frame.f_locals.get('submissions', ()):\n"
        "            assert not any(file.path.exists() for file in submission.notebooks)\n"
        "        assert 'graded' not in frame.f_locals",
        ("right", ""),
    ),
    "closes everything": ("import os; os.closerange(0, 100)", ("wrong", ANY)),
    "writes a verdict": (
        "import os; os.write(3, b'[\"verdict\", {\"status\": \"right\"}]\\n')",
        ("wrong", ANY),
    ),
    "returns a flood": ("return [[1.0] * 10**6], 'x' * 10**7", ("wrong", "no numbers")),
    "returns a large tensor": ("return torch.ones(3000, 3000), 1", ("wrong", "no numbers")),
    "returns itself": ("x = []; x += [x, x]; return x", ("wrong", "no numbers")),
    "returns what cannot be shown": (
        "X = type('X', (), {'__repr__': lambda x: 1 / 0}); return X(), X()",
        ("wrong", "no numbers"),
    ),
    "returns a sparse tensor": ("return rewards.to_sparse(), values", ("wrong", "no numbers")),
    "calls the package": (
        "from rlhf_toy import losses; return losses.gae(rewards, values, mask, gamma, lam)",
        ("the package's own", ""),
    ),
    "prints the solution": ("return exercises.solution('gae')", ("not attempted", "")),
    "looks into the grader": (
        "from rlhf_toy.course.exercises import _EXERCISES\n"
        "    return _EXERCISES['gae'].solution(rewards, values, mask, gamma, lam)",
        ("the package's own", ""),
    ),
}  # fmt: skip

CELLS: dict[str, tuple[str, Expected]] = {  # cells in place of gae's
    "needs a loop": (
        "def slow():\n    while True: pass\n\ntable = slow()\ndef gae(*arguments): return table",
        ("wrong", "does not end"),
    ),
    "needs what is not there": (
        "table = open('table.csv').read()\ndef gae(*arguments): return table",
        ("wrong", "raises NameError"),
    ),
    "is not defined": ("gae = no_such_name", ("wrong", "not defined")),
    "is a number": ("gae = 3", ("wrong", "no function")),
    "is imported": ("from rlhf_toy.losses import gae", ("the package's own", "")),
}

NEED_NAMESPACES = {"kills", "reaches out", "reads the class"}  # elsewhere they get another verdict

PATCHES = {  # cells that gae uses, which returns zeros
    "patches torch": """
torch.allclose = torch.equal = lambda *a, **k: True
torch.Tensor.__eq__ = torch.Tensor.double = lambda x, *a: x
""",
    "patches the grader": """
from rlhf_toy.course.exercises import grading, outcomes
grading.judge = grading.grade = exercises.grade = lambda *a, **k: exercises.Verdict("right")
outcomes.same = outcomes.close = grading.same = grading.close = lambda *a: True
""",
    "patches Python": """
import builtins, json
builtins.all = builtins.any = builtins.isinstance = lambda *a: True
json.dumps = lambda *a, **k: '["outcome", {"status": "right"}]'
""",
}
