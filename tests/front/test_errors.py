"""What an error tells a client beside its message."""

from __future__ import annotations

import pytest

from ember.front.errors import ApiError, bad_request, internal_error, shutting_down
from ember.front.link.admission import Admission


def busy() -> ApiError:
    with pytest.raises(ApiError) as caught:
        Admission(max_requests=0).enter(1, 5)
    return caught.value


@pytest.mark.parametrize("error", [shutting_down(), ApiError(503, "The model is being loaded."), busy()])
def test_every_503_says_when_to_come_again_in_both_units(error: ApiError) -> None:
    # OpenAI's SDKs read the milliseconds; curl, urllib3 and proxies read the seconds.
    seconds, milliseconds = int(error.headers["retry-after"]), int(error.headers["retry-after-ms"])
    assert 0 < milliseconds <= seconds * 1000


def test_a_503_keeps_its_own_headers() -> None:
    assert set(ApiError(503, "Later.", headers={"x-other": "1"}).headers) == {
        "retry-after",
        "retry-after-ms",
        "x-other",
    }


@pytest.mark.parametrize("error", [bad_request("No."), internal_error()])
def test_no_other_error_asks_to_come_again(error: ApiError) -> None:
    assert error.headers == {}
