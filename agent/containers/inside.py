"""The worker of a container: `python -P -m agent.containers.inside [PATH]`. The same worker, reached through a door.

It ends when the agent hangs up, however the agent ended. Started by the engine, see `agent.containers.options`.
"""

from __future__ import annotations

import sys

from agent.containers.door import INSIDE, SOCKET, enter
from agent.sandbox.worker import quiet_libraries, work


def main(arguments: list[str]) -> None:
    quiet_libraries()
    work(enter(arguments[0] if arguments else f"{INSIDE}/{SOCKET}").detach())


if __name__ == "__main__":
    main(sys.argv[1:])
