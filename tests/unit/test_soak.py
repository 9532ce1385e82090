"""The soak and the sweep can tell what is wrong, and say it."""

from __future__ import annotations

import json
import mmap
import socket
import threading
from pathlib import Path

from soak.resources import Holding, growth, holding
from sweep.faults import BREAKS
from sweep.points import Broken, broken_points, combined_points, death_points, sample
from sweep.requests import Request
from sweep.run import Result
from sweep.tally import BEGIN, END, Tally, main

FLAT = Holding(memory=300.0, threads=5, sockets=10, descriptors=20)
REQUESTS = [
    Request("GetObject .metadata", 0, 0, 100),
    Request("PutObject __0_0", 0, 1000, 0),
    Request("PutObject __0_0", 1, 1000, 0),
]


def test_what_is_held_is_counted() -> None:
    before, release = holding(), threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    # a mapping: Python's own memory may come from what tests before this one have freed
    with socket.socket(), mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for start in range(0, 256 << 20, mmap.PAGESIZE):
            block[start] = 1
        during = holding()
    release.set()
    thread.join()
    assert during.threads == before.threads + 1
    assert during.sockets == before.sockets + 1
    assert during.descriptors == before.descriptors + 1
    # tests before this one may have left what is freed meanwhile
    assert during.memory > before.memory + 64


def test_what_grows_is_found() -> None:
    medians, grown = growth([FLAT] * 20)
    assert medians["threads"] == (5, 5)
    assert grown == []
    leaking = [Holding(300.0 + 5 * number, 5 + number, 10 + number, 20 + number) for number in range(20)]
    _, grown = growth(leaking)
    assert [text.split()[0] for text in grown] == ["memory", "threads", "sockets", "descriptors"]
    # what was high at the start only
    assert growth([leaking[-1], *[FLAT] * 19])[1] == []


def test_points_are_at_every_request() -> None:
    points = broken_points(REQUESTS)
    assert len(set(map(str, points))) == len(points)
    for way in BREAKS:
        broken = {point.breaks[0][1] for point in points if point.breaks[0][0] is way}
        assert broken == {request for request in REQUESTS if way.breaks(request)}
        assert broken
    assert len(death_points(REQUESTS)) == 3 * 3 * 2 * len(REQUESTS)
    assert combined_points(REQUESTS, 5) == combined_points(REQUESTS, 5)
    assert sample(points, 7, 1) == sample(points, 7, 1)
    assert len({str(point) for point in sample(points, 7, 1)}) == 7


def test_counts_are_added_to_the_file_and_shown_in_the_page(tmp_path: Path) -> None:
    counts, page = tmp_path / "counts.json", tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    good, bad = (Result(Broken(((BREAKS[0], request),)), True, ()) for request in REQUESTS[:2])
    for cloud, results in {
        "gcs": [good, bad],
        "azurite": [Result(bad.point, False, ("it is lost",))],
    }.items():
        tally = Tally(cloud, "a save, one fault", len(results), counts)
        for result in results:
            tally.add(result)
    main(str(counts), str(page))
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert f"| {BREAKS[0].title} | – | – | 2 | 1, **1 violations** |" in text
    assert "| points | 0 | 0 | 2 | 1 |" in text
    assert f"- azurite, a save, one fault: {bad.point}: it is lost\n" in text
    # again: the same scenario replaces what was there of it
    Tally("gcs", "a save, one fault", 1, counts).add(good)
    assert json.loads(counts.read_text())["gcs"]["a save, one fault"]["planned"] == 1
    main(str(counts), str(page))
    assert page.read_text().count(BEGIN) == 1
