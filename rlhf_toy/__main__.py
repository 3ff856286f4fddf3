"""The course's command line: `python -m rlhf_toy COMMAND`."""

import sys

from rlhf_toy.course.commands.command_line import main

if __name__ == "__main__":
    sys.exit(main())
