"""How many bytes may be under way from one source, and how large the next block should be. Pure: time is passed in.

A model of the way, as in BBR (Cardwell et al., "BBR: Congestion-Based Congestion Control", ACM Queue 14(5), 2016): the
highest delivery rate and the shortest round trip of late give the bytes that fill the link; what is under way beyond
them only waits in a queue, and with it every command and sample on the same connection. Delivery rates are measured as
in Cheng et al., draft-cheng-iccrg-delivery-rate-estimation. Called by `agent.transfer.lane`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from modules.messages import MAX_BLOCK_BYTES

PIECE_BYTES = 16 * 1024  # the smallest block; blocks smaller than a chunk are cut at multiples of it
BLOCK_S = 0.04  # a block takes this long on the link: so coarse is the control, and so long waits a command behind it
# Beyond what fills the link, for the unevenness of broker, hub and this process; in seconds of the link, and in blocks.
AHEAD_S, BLOCKS_AHEAD = 0.09, 2
# A quarter of the round trip, or what evens out its jitter, at most this: the window grows by it while there is room.
GROW_S, GROW_BYTES = 0.1, 1024 * 1024
QUEUE_S = 0.15  # a queue that stands longer than this shrinks the window whatever the model says
START_QUEUE_S = 0.05
START_GAIN = 3.0
RATE_ROUNDS, RATE_S = 10, 1.0  # how long a highest rate counts
BASE_S, BASE_TRIPS = 12.0, 20  # how long a shortest round trip counts before it is looked for again
DRAINED = 0.85  # of what fills the link, while it is looked for
MOST_BYTES = 16 * 1024 * 1024
GROWN = 1.25
FLAT_ROUNDS = 3
RTO_LEAST_S = 3.0


@dataclass(slots=True)
class Flight:
    """A block that was asked for. `limited`: held back by something else than the window. `over`: nobody waits."""

    size: int
    sent_at: float
    delivered: int
    delivered_at: float
    first_sent_at: float
    limited: bool = False
    over: bool = False


class Window:
    """`room()` bytes may be asked for now; tell it `sent`, and then `arrived`, `lost` (no answer) or `dropped`."""

    def __init__(self, most_bytes: int = MOST_BYTES, block_bytes: int = MAX_BLOCK_BYTES) -> None:
        self.in_flight = 0
        self._most, self._largest = most_bytes, max(PIECE_BYTES, min(block_bytes, most_bytes // 2))
        self._size = 2 * PIECE_BYTES
        self._delivered, self._delivered_at, self._first_sent_at = 0, 0.0, 0.0
        self._rates: deque[tuple[float, float]] = deque()  # (at, bytes/s), falling: its first is the highest
        self._base: tuple[float, int, float] | None = None  # (round trip, size, at) of the shortest
        self._smooth, self._spread, self._backoff = 0.0, 0.0, 1.0
        self._round_ends, self._round_queue = 0, float("inf")
        self._starting, self._best_rate, self._flat, self._late = True, 0.0, 0, 0
        self._trim = 1.0  # what losses and a queue that stands take from the model
        self._shrunk_at = 0  # bytes delivered: once a round is enough
        self._draining_until = 0.0
        self._drained: tuple[float, int, float] | None = None  # the shortest round trip while draining

    @property
    def rate(self) -> float:
        """Bytes per second that the way gives; 0 while nothing is known."""
        return self._rates[0][1] if self._rates else 0.0

    @property
    def base_s(self) -> float:
        """The shortest round trip of a block, its own time on the link included; 0 while nothing is known."""
        return self._base[0] if self._base else 0.0

    @property
    def size(self) -> int:
        """Bytes that may be under way."""
        return self._size

    @property
    def block(self) -> int:
        """The bytes of a block: so many as take BLOCK_S, in whole pieces."""
        pieces = int(min(self.rate * BLOCK_S * min(1.0, self._trim), self._largest)) // PIECE_BYTES
        return max(1, pieces) * PIECE_BYTES

    def room(self) -> int:
        """Bytes; a block may be asked for when this is above zero."""
        return self._size - self.in_flight

    def timeout_s(self, most_s: float) -> float:
        """How long to wait for an answer before it counts as lost: far longer than any answer took of late."""
        if not self._smooth:
            return most_s
        return min(most_s, max(RTO_LEAST_S, 4 * self._smooth + 8 * self._spread) * self._backoff)

    def sent(self, size: int, now: float, *, limited: bool = False) -> Flight:
        if self.in_flight == 0:
            self._first_sent_at = self._delivered_at = now
        self.in_flight += size
        return Flight(size, now, self._delivered, self._delivered_at, self._first_sent_at, limited)

    def dropped(self, flight: Flight) -> None:
        """Nothing can be learnt from it: the connection ended, or nobody waits any more. Once more does nothing."""
        if not flight.over:
            flight.over = True
            self.in_flight -= flight.size

    def lost(self, flight: Flight) -> None:
        """No answer in time, or the hub was too busy for one."""
        self.dropped(flight)
        self._starting = False
        self._backoff = min(8.0, 2 * self._backoff)
        self._shrink(0.7, flight.delivered)
        self._resize()

    def arrived(self, flight: Flight, now: float) -> None:
        self.dropped(flight)
        self._delivered += flight.size
        self._delivered_at, self._first_sent_at = now, flight.sent_at
        self._backoff = 1.0
        self._measure_rate(flight, now)
        queue = self._measure_trip(flight, now)
        self._round_queue = min(self._round_queue, queue)
        if self._starting:
            self._start(flight.size, queue)
        if flight.delivered >= self._round_ends:
            self._end_round(now)
        if not self._starting:
            self._resize()

    def _measure_rate(self, flight: Flight, now: float) -> None:
        """Over the longer of the time of sending and the time of arriving, so that a burst of answers is no rate."""
        took = max(flight.sent_at - flight.first_sent_at, now - flight.delivered_at)
        if took <= 0:
            return
        rate = (self._delivered - flight.delivered) / took
        keep = now - max(RATE_S, RATE_ROUNDS * self.base_s)
        while self._rates and self._rates[0][0] < keep and len(self._rates) > 1:
            self._rates.popleft()
        if flight.limited and rate < self.rate:
            return
        while self._rates and (self._rates[-1][1] <= rate or self._rates[-1][0] < keep):
            self._rates.pop()
        self._rates.append((now, rate))

    def _measure_trip(self, flight: Flight, now: float) -> float:
        """The time in queues, in seconds."""
        trip = now - flight.sent_at
        self._spread += (abs(trip - self._smooth) - self._spread) / 4 if self._smooth else trip / 2
        self._smooth += (trip - self._smooth) / 8 if self._smooth else trip
        if self._base is None or trip <= self._base[0]:
            self._base = (trip, flight.size, now)
        if self._drained is not None and trip <= self._drained[0]:
            self._drained = (trip, flight.size, now)
        larger = max(0, flight.size - self._base[1])
        return trip - self._base[0] - (larger / self.rate if self.rate else 0.0)

    def _start(self, size: int, queue: float) -> None:
        """Doubles in a round trip, until answers queue."""
        most = max(2 * PIECE_BYTES, START_GAIN * self.rate * self.base_s)
        self._size = int(min(self._size + size, most, self._most))
        self._late = self._late + 1 if queue > max(START_QUEUE_S, self.base_s / 4) else 0
        if self._late > FLAT_ROUNDS:
            self._starting = False

    def _end_round(self, now: float) -> None:
        """A round: what was asked for at its beginning has arrived."""
        self._round_ends = self._delivered
        queue, self._round_queue = self._round_queue, float("inf")
        if self._starting:
            grew = self.rate > GROWN * self._best_rate
            self._best_rate = max(self._best_rate, self.rate)
            self._flat = 0 if grew else self._flat + 1
            self._starting = self._flat < FLAT_ROUNDS
        elif queue > QUEUE_S + 2 * self.block / self.rate:
            self._shrink(max(0.5, 1 - queue), self._delivered)
        else:
            self._trim = min(1.0, 1.05 * self._trim)
        self._look_for_base(now)

    def _look_for_base(self, now: float) -> None:
        """Empties the queue now and then, so that the shortest round trip shows: the way may have become longer."""
        if self._drained is not None:
            if self.in_flight > self._size:
                self._draining_until = now + self.base_s  # the queue begins to be empty when no more is under way
            elif now >= self._draining_until:
                trip, size, _ = self._drained
                own = (size - PIECE_BYTES) / self.rate  # as a small block would have found it
                self._base, self._drained = (max(trip - own, trip / 2), PIECE_BYTES, now), None
        elif self._base is not None and now - self._base[2] > max(BASE_S, BASE_TRIPS * self.base_s):
            self._drained = (float("inf"), 0, now)
            self._draining_until = now + self.base_s

    def _shrink(self, factor: float, delivered: int) -> None:
        if delivered >= self._shrunk_at:
            self._trim = max(0.05, factor * self._trim)
            self._shrunk_at = self._delivered + self.in_flight

    def _resize(self) -> None:
        fills = self.rate * self.base_s
        if self._drained is not None:
            size = DRAINED * fills
        else:
            ahead = min(self.rate * AHEAD_S, BLOCKS_AHEAD * self.block)
            uneven_s = min(max(self.base_s / 4, 2 * self._spread), GROW_S)
            size = self._trim * (fills + max(ahead, min(self.rate * uneven_s, GROW_BYTES)))
        self._size = int(min(max(size, 1), self._most))
