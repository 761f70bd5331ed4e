"""Event loops that end their tasks before they close.

Orbax reads and writes all arrays of a tree at once, each in a task, and raises the first task's error. Then
it closes the loop under the other tasks, and each of them prints a traceback: of a loop that is closed when
its array has come, or of itself when it is collected as garbage, which may be minutes later.
"""

import asyncio
import contextlib
from collections.abc import Iterator

_WAIT_SECONDS = 10.0  # for tasks of one array each; one may wait for ever for another that failed


class EventLoop(asyncio.SelectorEventLoop):
    """An event loop whose `close` waits for its tasks.

    Those that do not end are cancelled.
    """

    def __init__(self) -> None:
        """Opens it, which fails where the process may open no more files."""
        try:
            super().__init__()
        except OSError:
            # Else this garbage warns that it was never closed, and closes what it never opened.
            asyncio.BaseEventLoop.close(self)
            raise

    def close(self) -> None:
        """Ends the tasks, whose errors nobody awaits any more, then the loop."""
        if not self.is_closed() and not self.is_running():
            self.run_until_complete(_end(asyncio.all_tasks(self)))
        super().close()


async def _end(tasks: set[asyncio.Task]) -> None:
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=_WAIT_SECONDS)
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    # Tasks that ended in the loop's last round wake those who wait for them only now.
    await asyncio.sleep(0)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return EventLoop()


@contextlib.contextmanager
def ending_tasks() -> Iterator[None]:
    """Makes the process' new event loops `EventLoop`s, within the context."""
    policy = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Policy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(policy)
