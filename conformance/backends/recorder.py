"""A proxy on loopback that changes nothing, and remembers what passed between a test and a server."""

from __future__ import annotations

from collections.abc import Callable

from conformance.servers.faulty_proxy import NO_FAULTS, Answer, HTTPProxy, Request


class Recorder(HTTPProxy):
    """``passed`` has every request with its answer, also when the answer was lost, as ``lost`` may want."""

    def __init__(self, target: str) -> None:
        super().__init__(target, rates=NO_FAULTS)
        self.passed: list[tuple[Request, Answer]] = []
        self.lost: Callable[[Request], bool] = lambda request: False

    async def _pass_on(self, request: Request) -> Answer:
        answer = await super()._pass_on(request)
        self.passed.append((request, answer))
        if self.lost(request):
            raise EOFError
        return answer

    def take(self) -> list[tuple[Request, Answer]]:
        """What passed since the last time."""
        passed, self.passed = self.passed, []
        return passed

    def summary(self) -> list[tuple[str, int]]:
        """As :meth:`take`: the method, with what it is about where the query says so, and the status, sorted."""
        return sorted((_named(request), answer.status) for request, answer in self.take())


def _named(request: Request) -> str:
    comp = request.target.partition("comp=")[2].partition("&")[0]
    return f"{request.method} {comp}".rstrip()
