"""A proxy on loopback that remembers what passed between a test and a server, and changes only what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from conformance.servers.faulty_proxy import NO_FAULTS, PASS, Answer, HTTPProxy, Request


class Recorder(HTTPProxy):
    """``passed`` has every request that reached the server with its answer, also when that was lost.

    ``faults`` happen to the next requests, one each. ``refused`` gives the status with which a request is answered
    instead (0: none), ``lost`` whether an answer is lost.
    """

    def __init__(
        self, target: str, *, faults: Iterable[str] = (), refused: Callable[[Request], int] = lambda request: 0
    ) -> None:
        super().__init__(target, rates=NO_FAULTS, rewrite=lambda request: refused(request) or request)
        self.faults = list(faults)
        self.passed: list[tuple[Request, Answer]] = []
        self.lost: Callable[[Request], bool] = lambda request: False

    def choose(self) -> str:
        return self.faults.pop(0) if self.faults else PASS

    async def _pass_on(self, request: Request) -> Answer:
        answer = await super()._pass_on(request)
        self.passed.append((request, answer))
        if self.lost(request):
            raise EOFError
        return answer

    @property
    def requests(self) -> list[Request]:
        return [request for request, _ in self.passed]

    @property
    def answers(self) -> list[Answer]:
        return [answer for _, answer in self.passed]

    def take(self) -> list[tuple[Request, Answer]]:
        """What passed since the last time."""
        passed, self.passed = self.passed, []
        return passed

    def summary(self) -> list[tuple[str, int]]:
        """As :meth:`take`: the method, with what it is about where the query says so, and the status."""
        return [(_named(request), answer.status) for request, answer in self.take()]

    def moved(self) -> list[tuple[str, str, int]]:
        """As :meth:`take`: method, path, and bytes of the body that was moved."""
        return [
            (
                request.method,
                request.target.partition("?")[0],
                len(request.body) if request.applies else len(answer.whole) - answer.body_at,
            )
            for request, answer in self.take()
        ]


def _named(request: Request) -> str:
    comp = request.target.partition("comp=")[2].partition("&")[0]
    return f"{request.method} {comp}".rstrip()
