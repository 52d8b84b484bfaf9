"""What an output of an engine without a server says of itself."""

from __future__ import annotations

import copy
import json
import pickle
from types import SimpleNamespace

import pytest

from monitor.records import RecentRecords, reply
from monitor.seam.request_output import patch_request_output, tell
from tests.unit.monitor_fakes import alerting, column, make_frontend
from tests.unit.test_monitor_frontend import running_of, send


class Output:
    """As much of a ``RequestOutput`` as is looked at."""

    def __init__(self, request_id: str, finished: bool = True) -> None:
        self.request_id = request_id
        self.finished = finished


patch_request_output(Output)


def judged() -> RecentRecords:
    frontend, _ = make_frontend(alerting(threshold=2.5), alerting("other", threshold=9.0))
    running = running_of(2, "r0")
    send(frontend, running, 1, 0, column(2.0, 4.0).repeat(2, axis=1))
    frontend.finish(running, "stop")
    return frontend.recent


def test_the_dict_of_a_reply_is_made_once_when_somebody_reads_it() -> None:
    recent, output = judged(), Output("r0")
    tell(output, SimpleNamespace(recent=recent))  # type: ignore[arg-type]
    assert "probewatch" not in vars(output)
    told = output.probewatch  # type: ignore[attr-defined]
    assert type(told) is dict
    assert told == reply(recent.of("r0"))
    assert told["verdict"] == "flagged"
    assert json.loads(json.dumps(told)) == told
    assert output.probewatch is told  # type: ignore[attr-defined]


@pytest.mark.parametrize("output", [Output("r0", finished=False), Output("unknown")])
def test_an_output_of_which_nothing_is_known_has_no_such_attribute(output: Output) -> None:
    tell(output, SimpleNamespace(recent=judged()))  # type: ignore[arg-type]
    assert not hasattr(output, "probewatch")


def test_it_travels_as_a_plain_dict_and_holds_no_token_scores() -> None:
    recent, output = judged(), Output("r0")
    tell(output, SimpleNamespace(recent=recent))  # type: ignore[arg-type]
    carried = pickle.dumps(output)
    assert b"monitor" not in carried.replace(Output.__module__.encode(), b"")
    expected = reply(recent.of("r0"))
    for other in (pickle.loads(carried), copy.copy(output)):
        assert vars(other) == {"request_id": "r0", "finished": True, "probewatch": expected}
    assert pickle.loads(pickle.dumps(Output("r1", finished=False))).request_id == "r1"
